"""The draft vocabulary: counted ids first, low ids before high ones among the uncounted."""

import torch

from drafter_svc.train.data.documents import Document
from drafter_svc.train.data.draft_vocab import choose_draft_vocabulary, count_tokens, coverage

TEXT = [Document([7, 7, 9], [False, True, True]), Document([7, 3], [True, True])]


def test_counts_are_of_prompts_and_answers() -> None:
    counts = count_tokens(TEXT, 12)
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == {3: 1, 7: 3, 9: 1}


def test_frequent_ids_then_low_ids() -> None:
    counts = torch.zeros(100)
    counts[90], counts[50] = 400, 300
    assert choose_draft_vocabulary(counts, 4, []).tolist() == [0, 1, 50, 90]


def test_end_tokens_are_always_in() -> None:
    counts = torch.zeros(100)
    counts[:50] = 10
    assert 99 in choose_draft_vocabulary(counts, 3, [], always=[99]).tolist()


def test_the_prior_does_not_outweigh_counted_text() -> None:
    counts = torch.zeros(1000)
    counts[900:] = 10
    assert set(range(900, 1000)) <= set(choose_draft_vocabulary(counts, 110, []).tolist())


def test_held_out_text_weighs_the_prior() -> None:
    counts = torch.zeros(1000)
    counts[500:600] = 3  # rare ids of a small text
    low = choose_draft_vocabulary(counts, 60, [Document(list(range(60)), [True] * 60)])
    high = choose_draft_vocabulary(counts, 60, [Document(list(range(500, 600)), [True] * 100)])
    assert (low < 60).sum() > (high < 60).sum()


def test_coverage_is_of_answer_tokens() -> None:
    assert coverage(TEXT, torch.tensor([7])) == 0.5
    assert coverage(TEXT, torch.tensor([3, 7, 9])) == 1.0
