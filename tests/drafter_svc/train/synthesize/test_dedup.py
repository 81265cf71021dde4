"""Loops and near-duplicates."""

import random

import pytest

from drafter_svc.train.synthesize.dedup import NearDuplicates, loop_share

WORDS = [f"w{n}" for n in range(500)]


def text(seed: int, words: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def test_tokens_that_never_repeat_have_no_loop() -> None:
    assert loop_share(range(100)) == 0
    assert loop_share([]) == loop_share([5] * 7) == 0


def test_the_share_counts_what_was_there_before() -> None:
    # 93 8-grams, of which those of the second half but the 7 across the seam repeat.
    assert loop_share([*range(50), *range(50)]) == pytest.approx(43 / 93)
    assert loop_share([5] * 100) == pytest.approx(92 / 93)


def test_a_late_loop_counts_for_what_it_is() -> None:
    assert loop_share([*range(300), *([1, 2, 3] * 20)]) < 0.2
    assert loop_share([*range(100), *([1, 2, 3] * 40)]) > 0.4


def test_near_duplicates_are_found_and_others_kept() -> None:
    index = NearDuplicates(0.7)
    texts = [text(seed) for seed in range(300)]
    assert all(index.add(" ".join(words)) for words in texts)
    assert not index.add(" ".join(texts[7]))
    assert not index.add(" ".join(texts[7]).upper() + " \n")
    for seed, words in enumerate(texts[:50]):
        changed = list(words)
        changed[10] = "other"  # 3 of 58 shingles: a similarity of 0.9
        assert not index.add(" ".join(changed)), seed
    for words in texts[50:100]:
        half = [*words[:30], *text(1000 + len(words), 30)]  # about a third
        assert index.add(" ".join(half)) or half[30:] == text(1060, 30)


def test_short_texts_are_compared_whole() -> None:
    index = NearDuplicates(0.7)
    assert index.add("Hello")
    assert not index.add("hello")
    assert index.add("Hello there")
    assert index.add("")
    assert not index.add("  ")
