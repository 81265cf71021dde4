"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.text.stop_strings import StopFinder

SMALL = st.text("ab.", max_size=30)


def split(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(
    text=SMALL, stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=4), data=st.data()
)
def test_passes_on_what_stands_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    """Pieces are single characters: then the first stop to be complete ends the text."""
    finder = StopFinder(stops)
    shown = ""
    for end, char in enumerate(text, 1):
        shown += finder.push(char)
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        assert finder.found == bool(complete)
        if complete:
            assert shown == text[: end - max(map(len, complete))]
            return
    assert shown + finder.flush() == text


@given(text=SMALL, stop=st.text("ab.", min_size=1, max_size=4), cuts=st.lists(st.integers(0, 99)))
def test_pieces_do_not_matter_for_one_stop(text: str, stop: str, cuts: list[int]) -> None:
    finder = StopFinder([stop])
    shown = "".join(map(finder.push, split(text, cuts)))
    before, found, _ = text.partition(stop)
    assert finder.found == bool(found)
    assert shown + finder.flush() == before


@given(text=SMALL, stop=st.text("ab.", min_size=1, max_size=4))
def test_holds_back_only_what_may_become_a_stop(text: str, stop: str) -> None:
    finder = StopFinder([stop])
    shown = ""
    for end, char in enumerate(text, 1):
        shown += finder.push(char)
        if finder.found:
            return
        held = text[len(shown) : end]
        assert stop.startswith(held)
        assert held != stop


def test_nothing_follows_a_stop() -> None:
    finder = StopFinder(["STOP", "P!"])
    assert [finder.push(text) for text in ("a ST", "OP", "!", "b")] == ["a ", "", "", ""]
    assert finder.flush() == ""
