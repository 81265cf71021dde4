"""The suffix index against a search that looks at every earlier place."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.inference import ngram_lookup
from drafter_svc.inference.ngram_lookup import SuffixIndex

# Few tokens, so that suffixes repeat.
texts = st.lists(st.integers(0, 2), max_size=60)


def common(tokens: list[int], place: int) -> int:
    length = 0
    while length < place and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length


def naive(tokens: list[int], shortest: int) -> tuple[int, int]:
    """The longest repeated suffix; of several places the last one."""
    found = [(common(tokens, place), place) for place in range(1, len(tokens))]
    return max((f for f in found if f[0] >= shortest), default=(0, 0))


def index_of(tokens: list[int], shortest: int) -> SuffixIndex:
    index = SuffixIndex(shortest)
    index.extend(tokens)
    return index


@given(texts, st.integers(1, 5))
def test_the_longest_repeated_suffix_is_found(tokens: list[int], shortest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_lookup, "_LONGEST", 1000)
        patch.setattr(ngram_lookup, "_CANDIDATES", 1000)
        assert index_of(tokens, shortest).match() == naive(tokens, shortest)


@given(texts, st.integers(1, 4), st.integers(1, 6))
def test_beyond_the_longest_match_the_most_recent_place_wins(
    tokens: list[int], shortest: int, longest: int
) -> None:
    longest = max(longest, shortest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_lookup, "_LONGEST", longest)
        found = [(min(common(tokens, p), longest), p) for p in range(1, len(tokens))]
        expected = max((f for f in found if f[0] >= shortest), default=(0, 0))
        assert index_of(tokens, shortest).match() == expected


@given(st.lists(texts, max_size=5), st.integers(1, 4))
def test_it_does_not_matter_how_tokens_arrive(pieces: list[list[int]], shortest: int) -> None:
    index = SuffixIndex(shortest)
    tokens: list[int] = []
    for piece in pieces:
        index.extend(piece)
        tokens += piece
        assert index.match() == index_of(tokens, shortest).match()
    assert len(index) == len(tokens)


@given(texts, st.integers(1, 4), st.integers(1, 80))
def test_what_is_proposed_continues_the_earlier_occurrence(
    tokens: list[int], shortest: int, count: int
) -> None:
    index = index_of(tokens, shortest)
    proposed = list(index.propose(count))
    length, place = index.match()
    if not length:
        assert proposed == []
        return
    assert len(proposed) == count
    # Proposed tokens count as text: each equals the one a period earlier.
    whole = tokens + proposed
    period = len(tokens) - place
    assert all(whole[i] == whole[i - period] for i in range(len(tokens), len(whole)))


def test_the_text_after_the_repeated_words_is_proposed() -> None:
    index = index_of([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], shortest=3)
    assert index.propose(2) == (4, 5)
    assert index.propose(0) == ()
    assert index_of([1, 2, 3, 4, 9, 2, 3], shortest=3).propose(2) == (), "only two tokens repeat"


def test_the_longer_match_wins_over_the_more_recent_one() -> None:
    assert index_of([1, 2, 3, 8, 0, 2, 3, 9, 1, 2, 3], shortest=2).propose(1) == (8,)
    assert index_of([4, 2, 3, 8, 5, 2, 3, 9, 1, 2, 3], shortest=2).propose(1) == (9,)


def test_a_loop_goes_on_for_ever() -> None:
    assert index_of([9, 5, 6, 7, 5, 6, 7], shortest=3).propose(8) == (5, 6, 7, 5, 6, 7, 5, 6)
    assert index_of([5, 5, 5], shortest=2).propose(3) == (5, 5, 5)


def test_without_a_repetition_there_is_nothing() -> None:
    assert SuffixIndex(1).propose(3) == ()
    assert index_of([1], shortest=1).propose(3) == ()
    assert index_of(list(range(50)), shortest=1).propose(3) == ()


def test_a_search_stays_cheap_in_texts_that_repeat_everything() -> None:
    """Quadratic searches would take minutes here."""
    began = time.process_time()
    for tokens in ([5] * 4000, [5, 6] * 2000, ([5, 5, 5, 1] * 1000)):
        index = SuffixIndex(3)
        for token in tokens:
            index.extend([token])
            index.propose(8)
    assert time.process_time() - began < 5
