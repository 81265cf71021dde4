from typing import Any

import pytest

from loadtests.common.draft_stats import PARTS, RoundStats
from loadtests.common.result import Result


def result(tokens: int, rounds: int, **report: Any) -> Result:
    lists = ("proposed_at", "accepted_at", "lookup_proposed_at", "lookup_accepted_at")
    told = {"drafted_rounds": 0, "failovers": 0, **{name: [] for name in lists}} | report
    told |= {"rounds": rounds, "timings": dict.fromkeys(PARTS, (rounds - 1) * 2000)}
    return Result(tuple(range(tokens)), 1.0, "length", ((0.1, 1), (0.9, tokens - 1)), told)


def test_acceptance_over_requests_whose_drafts_have_different_lengths() -> None:
    rounds = RoundStats.of(
        [
            result(11, 6, drafted_rounds=4, proposed_at=[4, 4], accepted_at=[3, 2]),
            result(5, 5, drafted_rounds=1, proposed_at=[1], accepted_at=[0]),
        ]
    )
    assert rounds is not None
    # The first token of each request comes out of its prefill and counts on neither side.
    assert rounds.acceptance_length == pytest.approx(14 / 9)
    assert rounds.drafted_acceptance_length == pytest.approx(1 + 5 / 5)
    assert rounds.drafted_share == pytest.approx(5 / 9)
    assert rounds.shares == pytest.approx((3 / 5, 2 / 4))


def test_sources_are_counted_apart() -> None:
    rounds = RoundStats.of(
        [
            result(
                14, 6, drafted_rounds=5, proposed_at=[5, 5, 2], accepted_at=[4, 3, 1],
                lookup_proposed_at=[2, 2, 2], lookup_accepted_at=[2, 1, 1],
            ),
            result(5, 5, drafted_rounds=1, proposed_at=[1], accepted_at=[0]),
        ]
    )  # fmt: skip
    assert rounds is not None
    chain, lookup = rounds.by_source["chain"], rounds.by_source["lookup"]
    assert (chain.rounds, chain.proposed_at, chain.accepted_at) == (4, (4, 3), (2, 2))
    assert chain.acceptance_length == 2
    assert lookup.acceptance_length == 1 + 4 / 2
    assert lookup.per_position == (1.0, 0.5, 0.5)
    plain = RoundStats.of([result(5, 5)])
    assert plain is not None
    assert plain.by_source == {}


def test_acceptance_length_agrees_with_what_was_accepted() -> None:
    rounds = RoundStats.of(
        [result(13, 6, drafted_rounds=5, proposed_at=[5, 5], accepted_at=[4, 3])]
    )
    assert rounds is not None
    assert rounds.acceptance_length == rounds.drafted_acceptance_length == 1 + 7 / 5


def test_nothing_is_divided_by_nothing() -> None:
    assert RoundStats.of([]) is None
    assert RoundStats.of([result(1, 1)]) is None
    plain = RoundStats.of([result(5, 5)])
    assert plain is not None
    assert plain.drafted_acceptance_length is None
    dead = RoundStats.of([result(5, 5, drafted_rounds=4, proposed_at=[4, 4], accepted_at=[0, 0])])
    assert dead is not None
    assert dead.shares == (0.0, 0.0)


def test_times_are_per_round_after_the_first_token() -> None:
    rounds = RoundStats.of([result(5, 5), result(9, 9)])
    assert rounds is not None
    assert rounds.parts_ms == dict.fromkeys(PARTS, 2.0)
    assert rounds.client_ms == pytest.approx(2 * 800 / 12)


def test_gaps_and_time_per_token_are_apart() -> None:
    chunks = ((0.5, 1), (0.7, 3), (1.1, 1))
    one = Result((1, 2, 3, 4, 5), 1.2, "length", chunks)
    assert one.first_token == 0.5
    assert one.gaps == pytest.approx([0.2, 0.4])
    assert one.time_per_token == pytest.approx(0.6 / 4)
