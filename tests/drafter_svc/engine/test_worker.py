import math
from dataclasses import replace

import pytest
import structlog
import torch

import speckernels as kernels
from drafter_svc import metrics
from drafter_svc.engine import worker
from drafter_svc.engine.messages import Answers, BulkMessage, RoundMessage
from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftSource,
    ResendFrom,
    SequenceContext,
)
from tests.support.drafter_fixtures import GREEDY, MAX_LENGTH, Parts, Text, greedy, random_text
from tests.support.fake_flash_attention import serve_flash


@pytest.fixture
def parts() -> Parts:
    parts = Parts()
    parts.worker.open_link(1)
    parts.worker.open_link(2)
    return parts


def round_of(
    *sent: tuple[AppendEntries, torch.Tensor], link: int = 1, closes: tuple[int, ...] = ()
) -> RoundMessage:
    features = torch.cat([rows for _, rows in sent]) if sent else None
    return RoundMessage(link, tuple(extend for extend, _ in sent), features, closes, 0.0)


def serve(parts: Parts, *rounds: RoundMessage) -> Answers:
    """The answers to link 1."""
    return parts.worker.serve(rounds).get(1, Answers())


def only(answers: Answers) -> Draft:
    assert not answers.needs
    (draft,) = answers.drafts
    return draft


def check(parts: Parts, draft: Draft, text: Text, base: int, length: int) -> None:
    assert draft.base == base
    assert list(draft.tokens) == parts.slow_draft(text, base, length, greedy).tokens


def test_generation_with_partial_acceptance(parts: Parts) -> None:
    text = random_text(40, 1)
    at = 0
    for stop, length in [(9, 4), (10, 4), (13, 1), (18, 7)]:
        answers = serve(parts, round_of(text.extend(5, at, stop, length)))
        check(parts, only(answers), text, stop, length)
        at = stop


def test_a_gap_is_answered_by_need_and_filled_by_a_replay(parts: Parts) -> None:
    text = random_text(20, 2)
    serve(parts, round_of(text.extend(5, 0, 6, 2)))
    answers = serve(parts, round_of(text.extend(5, 9, 11, 3)))
    assert answers == Answers([], [ResendFrom(5, 6, 11)])
    # More than is missing: what is held already is skipped.
    check(parts, only(serve(parts, round_of(text.extend(5, 4, 11, 3)))), text, 11, 3)


def test_queued_extends_fold_and_only_the_newest_base_is_drafted(parts: Parts) -> None:
    text = random_text(20, 3)
    rounds = [text.extend(5, 0, 6, 2), text.extend(5, 6, 8, 5), text.extend(5, 8, 9, 3)]
    check(parts, only(serve(parts, *(round_of(sent) for sent in rounds))), text, 9, 3)


def test_a_wish_that_entries_overtook_is_answered_at_the_newest_base(parts: Parts) -> None:
    text = random_text(130, 4)
    # As many entries as the slab has rows: the guesses need more.
    overtaking = [round_of(text.extend(5, 60, 128)), round_of(text.extend(5, 50, 55))]
    answers = serve(parts, round_of(text.extend(5, 0, 60, 9)), *overtaking)
    check(parts, only(answers), text, 128, 9)


def test_sequences_of_all_links_share_a_batch_and_nothing_else(parts: Parts) -> None:
    ours, theirs = random_text(12, 5), random_text(12, 6)
    answers = parts.worker.serve(
        [
            round_of(ours.extend(5, 0, 11, 4)),
            round_of(theirs.extend(5, 0, 7, 2), link=2),
            round_of(theirs.extend(5, 0, 7, 2), link=3),
        ]
    )
    check(parts, only(answers[1]), ours, 11, 4)
    check(parts, only(answers[2]), theirs, 7, 2)
    assert set(answers) == {1, 2}


def test_closing_ends_a_sequence_and_may_be_repeated(parts: Parts) -> None:
    text = random_text(12, 7)
    serve(parts, round_of(text.extend(5, 0, 6, 2)))
    for _ in range(2):
        assert serve(parts, round_of(closes=(5, 77))) == Answers()
    assert serve(parts, round_of(text.extend(5, 6, 7, 2))).needs == [ResendFrom(5, 0, 7)]


def heir(text: Text, start: int, stop: int, length: int) -> tuple[AppendEntries, torch.Tensor]:
    """Sequence 6, which begins with the first 20 entries of sequence 5."""
    extend, features = text.extend(6, start, stop, length)
    return replace(extend, opening=replace(GREEDY, source=5, inherited=20)), features


def other_ending(text: Text) -> Text:
    """The same tokens up to 20 and features up to 19, and another end."""
    end = random_text(len(text.tokens), 99)
    return Text(
        text.tokens[:21] + end.tokens[21:], torch.cat([text.features[:20], end.features[20:]])
    )


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("looking", [0, 2])
def test_a_sequence_inherits_what_another_one_holds(closed: bool, looking: int) -> None:
    parts = Parts(lookup_match=looking)
    parts.worker.open_link(1)
    text = random_text(40, 15)
    serve(parts, round_of(text.extend(5, 0, 30, 2)))
    if closed:
        serve(parts, round_of(closes=(5,)))
    turn = other_ending(text)
    check(parts, only(serve(parts, round_of(heir(turn, 20, 33, 4)))), turn, 33, 4)
    if not closed:
        check(parts, only(serve(parts, round_of(text.extend(5, 30, 31, 4)))), text, 31, 4)


def test_rows_of_the_same_batch_are_inherited_too(parts: Parts) -> None:
    text = random_text(40, 16)
    turn = other_ending(text)
    answers = serve(parts, round_of(text.extend(5, 0, 30, 2), heir(turn, 20, 33, 4)))
    ours, heirs = answers.drafts
    check(parts, ours, text, 30, 2)
    check(parts, heirs, turn, 33, 4)


def test_what_cannot_be_inherited_is_needed(parts: Parts) -> None:
    text = random_text(40, 17)
    turn = other_ending(text)
    assert serve(parts, round_of(heir(turn, 20, 33, 4))).needs == [ResendFrom(6, 0, 33)]
    serve(parts, round_of(text.extend(5, 0, 12)))
    assert serve(parts, round_of(heir(turn, 20, 33, 4))).needs == [ResendFrom(6, 12, 33)]
    check(parts, only(serve(parts, round_of(heir(turn, 12, 33, 4)))), turn, 33, 4)
    serve(parts, round_of(text.extend(5, 0, 12), link=2))
    assert len(parts.worker.serve([round_of(heir(turn, 12, 33, 4), link=2)])[2].drafts) == 1


def test_a_wish_without_an_entry_of_its_own_gets_an_empty_draft(parts: Parts) -> None:
    text = random_text(40, 18)
    serve(parts, round_of(text.extend(5, 0, 30)))
    draft = only(serve(parts, round_of(heir(text, 20, 20, 4))))
    assert (draft.base, draft.tokens) == (20, ())


def test_lookups_see_what_was_inherited() -> None:
    parts = Parts(lookup_match=2)
    parts.worker.open_link(1)
    text = repeating_text(parts)
    serve(parts, round_of(text.extend(5, 0, 24)))
    opening = replace(GREEDY, source=5, inherited=12)
    extend, rows = text.extend(6, 12, 14, lookup_tokens=3)
    found = only(serve(parts, round_of((replace(extend, opening=opening), rows))))
    assert found.tokens == tuple(text.tokens[6:9])


def test_ended_sequences_go_before_running_ones() -> None:
    parts = Parts(rows=128)
    parts.worker.open_link(1)
    texts = [random_text(12, seed) for seed in range(3)]
    serve(parts, round_of(texts[0].extend(1, 0, 6, 2)))
    serve(parts, round_of(texts[1].extend(2, 0, 6, 2)))
    serve(parts, round_of(closes=(2,)))
    serve(parts, round_of(texts[2].extend(3, 0, 6, 2)))
    check(parts, only(serve(parts, round_of(texts[0].extend(1, 6, 7, 2)))), texts[0], 7, 2)


def test_a_lost_link_frees_its_sequences(parts: Parts) -> None:
    text = random_text(12, 8)
    serve(parts, round_of(text.extend(5, 0, 6)), round_of(text.extend(6, 0, 6), link=2))
    held = parts.cache.bytes_used
    parts.worker.close_link(1)
    assert parts.cache.bytes_used == held // 2
    assert serve(parts, round_of(text.extend(5, 6, 7, 2))) == Answers()


@pytest.mark.parametrize("way", ["operators", "graphs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_refuse_their_sequence_only(
    monkeypatch: pytest.MonkeyPatch, value: float, way: str
) -> None:
    if way == "graphs":
        serve_flash(monkeypatch)
        monkeypatch.setattr(Parts, "record", staticmethod(kernels.eager_capture))
    parts = Parts()
    parts.worker.open_link(1)
    good, bad = random_text(12, 9), random_text(12, 10)
    bad.features[3, 7] = value
    with structlog.testing.capture_logs() as logs:
        answers = serve(parts, round_of(bad.extend(5, 0, 6, 2), good.extend(6, 0, 6, 2)))
    assert [entry["reason"] for entry in logs] == ["its features are not finite"]
    assert answers.drafts[0] == Draft(5, 6, ())
    check(parts, answers.drafts[1], good, 6, 2)
    # It stays refused: an empty draft settles every further request.
    assert only(serve(parts, round_of(bad.extend(5, 6, 8, 4)))) == Draft(5, 8, ())
    assert parts.worker.fill([bulk_of(bad.extend(5, 8, 11))]) == [CatchUpAck(5, 11, 11, 3)]
    serve(parts, round_of(closes=(5,)))
    check(parts, only(serve(parts, round_of(good.extend(5, 0, 6, 2)))), good, 6, 2)
    assert len(parts.cache) == 2


def test_bulk_rows_that_are_not_finite_refuse_their_sequence_only(parts: Parts) -> None:
    good, bad = random_text(12, 9), random_text(12, 10)
    bad.features[3, 7] = math.nan
    pieces = [bulk_of(text.extend(seq, 0, 6)) for seq, text in ((5, bad), (6, good))]
    assert parts.worker.fill(pieces) == [CatchUpAck(5, 6, 6, 6), CatchUpAck(6, 6, 6, 6)]
    assert only(serve(parts, round_of(bad.extend(5, 6, 8, 4)))) == Draft(5, 8, ())
    check(parts, only(serve(parts, round_of(good.extend(6, 6, 8, 4)))), good, 8, 4)


def test_nobody_inherits_from_a_sequence_that_the_same_batch_refuses(parts: Parts) -> None:
    text = random_text(40, 16)
    bad = Text(text.tokens, text.features.clone())
    bad.features[25, 7] = math.nan
    answers = serve(parts, round_of(bad.extend(5, 0, 30, 2), heir(text, 20, 33, 4)))
    assert answers == Answers([Draft(5, 30, ())], [ResendFrom(6, 0, 33)])
    check(parts, only(serve(parts, round_of(heir(text, 0, 33, 4)))), text, 33, 4)


def test_more_sequences_than_states_were_kept_for(parts: Parts) -> None:
    """Slots' numbers go beyond the first rows of the table, and are used again."""
    texts = [random_text(12, seed) for seed in range(70)]
    parts = Parts(rows=70 * 64)
    for link in range(9):
        parts.worker.open_link(link)
    for seq, text in enumerate(texts):
        sent = text.extend(seq, 0, 6, 2)
        check(
            parts, only(parts.worker.serve([round_of(sent, link=seq // 8)])[seq // 8]), text, 6, 2
        )
    for seq in (3, 69, 64):
        sent = texts[seq].extend(seq, 6, 6, 2)
        served = parts.worker.serve([round_of(sent, link=seq // 8)])
        check(parts, only(served[seq // 8]), texts[seq], 6, 2)


def test_too_long_refuses_the_sequence_only(parts: Parts) -> None:
    long, short = random_text(MAX_LENGTH + 9, 11), random_text(12, 12)
    serve(parts, round_of(long.extend(5, 0, MAX_LENGTH)))
    answers = serve(
        parts,
        round_of(long.extend(5, MAX_LENGTH, MAX_LENGTH + 1, 2), short.extend(6, 0, 6, 2)),
    )
    assert answers.drafts[0] == Draft(5, MAX_LENGTH + 1, ())
    check(parts, answers.drafts[1], short, 6, 2)
    assert len(parts.cache) == 1


def test_the_longest_sequence_still_drafts(parts: Parts) -> None:
    text = random_text(MAX_LENGTH + 1, 13)
    draft = only(serve(parts, round_of(text.extend(5, 0, MAX_LENGTH, 16))))
    check(parts, draft, text, MAX_LENGTH, 16)


def test_eviction_is_answered_by_need_and_a_replay_gives_the_same_draft() -> None:
    parts = Parts(rows=128)
    parts.worker.open_link(1)
    texts = [random_text(50, seed) for seed in range(3)]
    before = [only(serve(parts, round_of(t.extend(i, 0, 40, 3)))) for i, t in enumerate(texts)]
    # Sequence 0 was evicted for sequence 2.
    answers = serve(parts, round_of(texts[0].extend(0, 40, 41, 3)))
    assert answers == Answers([], [ResendFrom(0, 0, 41)])
    assert only(serve(parts, round_of(texts[0].extend(0, 0, 40, 3)))) == before[0]


def test_what_does_not_fit_is_refused_without_touching_others() -> None:
    parts = Parts(rows=128)
    parts.worker.open_link(1)
    texts = [random_text(60, seed) for seed in range(3)]
    sent = [text.extend(seq, 0, 45, 3) for seq, text in enumerate(texts)]
    answers = serve(parts, round_of(*sent))
    drafts = {draft.seq: draft for draft in answers.drafts}
    assert drafts[2].tokens == ()
    for seq in (0, 1):
        check(parts, drafts[seq], texts[seq], 45, 3)


def test_penalties_see_entries_however_they_came(parts: Parts) -> None:
    opening = SequenceContext(3, 4, repetition_penalty=2.5, frequency_penalty=1.0)
    text = random_text(30, 14)
    text.tokens[1:] = [int(parts.target_ids[i % 7]) for i in range(29)]
    at_once = only(serve(parts, round_of(text.extend(5, 0, 20, 5, opening))))
    parts.worker.fill([bulk_of(text.extend(6, 0, 9, opening=opening))])
    serve(parts, round_of(text.extend(6, 8, 15)))
    in_pieces = only(serve(parts, round_of(text.extend(6, 12, 20, 5))))
    assert in_pieces.tokens == at_once.tokens
    heirs = text.extend(8, 12, 20, 5)
    opening = replace(opening, source=5, inherited=12)
    inherited = only(serve(parts, round_of((replace(heirs[0], opening=opening), heirs[1]))))
    assert inherited.tokens == at_once.tokens
    plain = only(serve(parts, round_of(text.extend(7, 0, 20, 5))))
    assert plain.tokens != at_once.tokens


def bulk_of(sent: tuple[AppendEntries, torch.Tensor], link: int = 1) -> BulkMessage:
    extend, features = sent
    return BulkMessage(link, extend, features, len(extend.tokens))


def test_bulk_is_acknowledged_by_what_is_held(parts: Parts) -> None:
    text = random_text(60, 15)
    pieces = [bulk_of(text.extend(5, 0, 20)), bulk_of(text.extend(5, 20, 50))]
    assert parts.worker.fill(pieces) == [CatchUpAck(5, 20, 20, 20), CatchUpAck(5, 50, 50, 30)]
    assert parts.worker.fill([bulk_of(text.extend(5, 10, 20))]) == [CatchUpAck(5, 50, 20, 10)]
    assert parts.worker.fill([bulk_of(text.extend(5, 55, 58))]) == [CatchUpAck(5, 50, 58, 3)]
    assert parts.worker.fill([bulk_of(text.extend(5, 0, 9), link=4)]) == [None]
    check(parts, only(serve(parts, round_of(text.extend(5, 50, 52, 3)))), text, 52, 3)
    # A round may bring nothing but the wish.
    check(parts, only(serve(parts, round_of(text.extend(5, 52, 52, 4)))), text, 52, 4)


def test_no_chain_starts_from_a_bulk_row(parts: Parts) -> None:
    """Only keys and values were made of it; the next entry of a round is enough."""
    text = random_text(60, 15)
    parts.worker.fill([bulk_of(text.extend(5, 0, 50))])
    assert only(serve(parts, round_of(text.extend(5, 50, 50, 3)))).tokens == ()
    check(parts, only(serve(parts, round_of(text.extend(5, 50, 51, 3)))), text, 51, 3)


def test_a_bulk_message_splits_into_pieces() -> None:
    text = random_text(30, 16)
    first, rest = bulk_of(text.extend(5, 4, 25)).split(8)
    assert (first.extend.start, first.extend.stop, len(first.features)) == (4, 12, 8)
    assert rest is not None
    assert (rest.extend.start, rest.extend.stop, rest.rows) == (12, 25, 21)
    assert first.extend.tokens + rest.extend.tokens == tuple(text.tokens[5:26])
    assert rest.split(13) == (rest, None)
    assert GREEDY not in (first.extend.opening, rest.extend.opening)


def repeating_text(parts: Parts) -> Text:
    """Entries 0..8 repeat from entry 9 on."""
    text = random_text(40, 17)
    text.tokens[10:20] = text.tokens[1:11]
    return text


@pytest.fixture
def looking() -> Parts:
    parts = Parts(lookup_match=3)
    parts.worker.open_link(1)
    return parts


def test_lookups_and_chains_share_a_round(looking: Parts) -> None:
    repeats, fresh = repeating_text(looking), random_text(20, 18)
    answers = serve(
        looking,
        round_of(
            repeats.extend(5, 0, 13, 2, lookup_tokens=6),
            fresh.extend(6, 0, 9, 4, lookup_tokens=6),
            repeats.extend(7, 0, 13, 3),
        ),
    )
    drafts = {draft.seq: draft for draft in answers.drafts}
    assert drafts[5] == Draft(5, 13, tuple(repeats.tokens[5:11]), source=DraftSource.LOOKUP)
    check(looking, drafts[6], fresh, 9, 4)
    check(looking, drafts[7], repeats, 13, 3)
    assert drafts[6].source is drafts[7].source is DraftSource.CHAIN
    # A lookup leaves nothing behind: the chain after it is that of the text.
    answers = serve(looking, round_of(repeats.extend(5, 13, 25, 4, lookup_tokens=6)))
    check(looking, only(answers), repeats, 25, 4)


def test_a_lookup_that_finds_nothing_is_answered_all_the_same(looking: Parts) -> None:
    fresh = random_text(20, 18)
    draft = only(serve(looking, round_of(fresh.extend(6, 0, 9, lookup_tokens=6))))
    assert (draft.base, draft.tokens) == (9, ())


def test_lookups_see_entries_however_they_came(looking: Parts) -> None:
    repeats = repeating_text(looking)
    looking.worker.fill([bulk_of(repeats.extend(5, 0, 9))])
    serve(looking, round_of(repeats.extend(5, 7, 11)))
    draft = only(serve(looking, round_of(repeats.extend(5, 10, 13, lookup_tokens=3))))
    assert draft.tokens == tuple(repeats.tokens[5:8])


def test_a_drafter_without_lookups_runs_the_chain(parts: Parts) -> None:
    repeats = repeating_text(parts)
    answers = serve(parts, round_of(repeats.extend(5, 0, 13, 2, lookup_tokens=6)))
    check(parts, only(answers), repeats, 13, 2)


def test_lookups_are_counted(looking: Parts) -> None:
    def counts() -> list[float]:
        return [
            metrics.LOOKUPS.labels("hit")._value.get(),
            metrics.LOOKUPS.labels("miss")._value.get(),
            metrics.DRAFT_TOKENS.labels(DraftSource.LOOKUP)._value.get(),
            metrics.DRAFT_TOKENS.labels(DraftSource.CHAIN)._value.get(),
        ]

    before = counts()
    repeats = repeating_text(looking)
    served = [
        serve(looking, round_of(repeats.extend(5, 0, 13, 2, lookup_tokens=6))),
        serve(looking, round_of(repeats.extend(5, 13, 25, 4, lookup_tokens=6))),
        serve(looking, round_of(repeats.extend(5, 25, 26, 3))),
    ]
    looking.worker.count(served)
    assert [b - a for a, b in zip(before, counts(), strict=True)] == [1, 1, 6, 7]


def test_the_thread_that_warms_up_has_the_device_for_its_own(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(worker, "use", used.append)
    parts.worker.warm_up()
    assert used == [parts.chain.device] == [torch.device("cpu")]
