from drafter_svc.engine.sequences import DrafterSequence, SequenceTable
from specwire.entry_log import EntrySpan
from specwire.messages import AppendEntries, DraftBudget, ResendFrom, SequenceContext

OPENING = SequenceContext(1, 1)


def opened(per_link: int = 4, max_length: int = 100) -> SequenceTable:
    sequences = SequenceTable(per_link, max_length)
    sequences.open_link(1)
    sequences.open_link(2)
    return sequences


def held(taken: tuple[DrafterSequence, EntrySpan] | ResendFrom) -> DrafterSequence:
    assert isinstance(taken, tuple)
    return taken[0]


def test_entries_are_appended_and_duplicates_skipped() -> None:
    sequences = opened()
    assert (
        held(sequences.extend(1, AppendEntries(5, 0, (1, 2, 3), opening=OPENING))).opening
        is OPENING
    )
    taken = sequences.extend(1, AppendEntries(5, 1, (2, 3, 4, 5)))
    assert isinstance(taken, tuple)
    assert taken[1] == EntrySpan(3, 5)


def test_a_gap_and_an_unknown_sequence_are_needed() -> None:
    sequences = opened()
    assert sequences.extend(1, AppendEntries(5, 7, (1, 2), DraftBudget(3))) == ResendFrom(5, 0, 9)
    sequences.extend(1, AppendEntries(5, 0, (1, 2), opening=OPENING))
    assert sequences.extend(1, AppendEntries(5, 7, (1, 2), DraftBudget(3))) == ResendFrom(5, 2, 9)
    assert sequences.extend(1, AppendEntries(6, 0, (), DraftBudget(3))) == ResendFrom(6, 0, 0)


def test_links_do_not_see_each_other() -> None:
    sequences = opened()
    sequences.extend(1, AppendEntries(5, 0, (1, 2, 3), opening=OPENING))
    assert sequences.extend(2, AppendEntries(5, 3, (4,))) == ResendFrom(5, 0, 4)
    sequences.extend(2, AppendEntries(5, 0, (9,), opening=OPENING))
    assert sequences.close_link(1) == [(1, 5)]
    assert sequences.close_link(1) == []
    assert not sequences.has_link(1)
    assert held(sequences.extend(2, AppendEntries(5, 1, (4,)))).receiver.real_len == 2


def test_too_long_is_refused_and_stays_so() -> None:
    sequences = opened(max_length=4)
    sequences.extend(1, AppendEntries(5, 0, (1, 2, 3), opening=OPENING))
    assert held(sequences.extend(1, AppendEntries(5, 3, (4, 5)))).refused
    assert held(sequences.extend(1, AppendEntries(5, 3, (4,)))).refused
    assert not held(sequences.extend(1, AppendEntries(6, 0, (1, 2, 3, 4), opening=OPENING))).refused


def test_one_too_many_is_refused_without_being_kept() -> None:
    sequences = opened(per_link=2)
    for seq in (1, 2):
        assert not held(sequences.extend(1, AppendEntries(seq, 0, (1,), opening=OPENING))).refused
    assert held(sequences.extend(1, AppendEntries(3, 0, (1,), opening=OPENING))).refused
    assert len(sequences) == 2
    sequences.drop((1, 2))
    assert not held(sequences.extend(1, AppendEntries(3, 0, (1,), opening=OPENING))).refused


def test_dropping_forgets_and_may_be_repeated() -> None:
    sequences = opened()
    sequences.extend(1, AppendEntries(5, 0, (1, 2), opening=OPENING))
    for _ in range(2):
        sequences.drop((1, 5))
    assert sequences.extend(1, AppendEntries(5, 2, (3,))) == ResendFrom(5, 0, 3)


def test_the_index_holds_each_token_once_however_it_came() -> None:
    sequences = SequenceTable(2, 20, lookup_match=2)
    sequences.open_link(1)
    opening = SequenceContext(first_token=7, output_start=1)
    sequences.extend(1, AppendEntries(5, 0, (8, 9, 7), opening=opening))
    sequences.extend(1, AppendEntries(5, 1, (9, 7, 8)))
    taken = held(sequences.extend(1, AppendEntries(5, 4, (), DraftBudget(0, 3))))
    assert taken.index is not None
    assert len(taken.index) == taken.receiver.real_len + 1 == 5
    assert taken.index.propose(4) == (9, 7, 8, 9)


def test_without_lookups_nothing_is_indexed() -> None:
    sequences = SequenceTable(2, 20)
    sequences.open_link(1)
    opening = SequenceContext(first_token=7, output_start=1)
    assert held(sequences.extend(1, AppendEntries(5, 0, (8,), opening=opening))).index is None
