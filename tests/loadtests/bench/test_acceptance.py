from typing import Any

import numpy as np
import pytest

from loadtests.bench.acceptance import Comparison, compare
from loadtests.common.result import Result

LENGTH = 3


def result(accepted: list[int], length: int = LENGTH, **more: Any) -> Result:
    """One whose drafts of `length` tokens had so many accepted, round by round."""
    report = {
        "rounds": len(accepted) + 1,
        "drafted_rounds": len(accepted),
        "proposed_at": [len(accepted)] * length,
        "accepted_at": [sum(a > at for a in accepted) for at in range(length)],
        "lookup_proposed_at": [],
        "lookup_accepted_at": [],
        "failovers": 0,
    }
    return Result((1,) * (len(accepted) + 1), 1.0, "length", (), report | more)


def engine(seed: int, chances: Any, prompts: int = 40, rounds: int = 60) -> dict[str, list[Result]]:
    """Chain acceptance with a chance per prompt for each token."""
    draw = np.random.default_rng(seed)
    found = {}
    for prompt, chance in zip(range(prompts), chances, strict=False):
        hits = draw.random((rounds, LENGTH)) < chance
        found[str(prompt)] = [result(hits.cumprod(1).sum(1).tolist())]
    return found


def chances(seed: int = 0, shift: float = 0.0) -> Any:
    """Prompts differ more from each other than chance does within one."""
    return np.clip(np.random.default_rng(seed).beta(4, 6, 40) + shift, 0, 1)


def compared(ours: dict[str, list[Result]], theirs: dict[str, list[Result]]) -> Comparison:
    comparison = compare(ours, theirs)
    assert comparison is not None
    return comparison


def test_equal_engines_pass_about_as_often_as_is_said() -> None:
    passed = sum(
        bool(compared(engine(2 * s, chances(s)), engine(2 * s + 1, chances(s))).equal)
        for s in range(60)
    )
    assert 52 <= passed <= 60


def test_the_error_is_that_of_paired_prompts() -> None:
    pairs = [
        compared(engine(2 * s, chances()), engine(2 * s + 1, chances())).positions[0]
        for s in range(60)
    ]
    spread = float(np.std([pair.difference for pair in pairs]))
    told = float(np.mean([pair.error for pair in pairs]))
    assert told == pytest.approx(spread, rel=0.3)


def test_a_worse_engine_is_found_out() -> None:
    comparison = compared(engine(1, chances()), engine(2, chances(shift=-0.06)))
    assert comparison.equal is False
    assert comparison.positions[0].difference == pytest.approx(0.06, abs=0.03)
    assert comparison.allowed == pytest.approx(2.39, abs=0.01)


def test_shares_and_length() -> None:
    ours = {"a": [result([3, 0])], "b": [result([1, 2])]}
    theirs = {"a": [result([3, 0])], "b": [result([1, 1])], "c": [result([0])]}
    comparison = compared(ours, theirs)
    assert comparison.prompts == 2
    assert [(p.ours, p.theirs) for p in comparison.positions] == [
        (0.75, 0.75),
        (0.5, 0.25),
        (0.25, 0.25),
    ]
    assert comparison.length is not None
    assert (comparison.length.ours, comparison.length.theirs) == (2.5, 2.25)
    assert comparison.positions[0].errors_apart == 0


def test_the_short_drafts_at_an_outputs_end_are_no_obstacle() -> None:
    short = result([1, 1, 1], proposed_at=[3, 2, 1], accepted_at=[3, 0, 0])
    comparison = compared(
        {"a": [short], "b": [short]},
        engine(1, chances(), 40)
        | {
            "a": [result([1])],
            "b": [result([1])],
        },
    )
    assert comparison.obstacle is None
    assert [p.ours for p in comparison.positions] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        (result([], rounds=5), "drafted nothing"),
        (result([1], 2), "HOLDCOURSE_DRAFT_LENGTH=3"),
        (result([1] * 9, proposed_at=[9, 9, 2]), "14 had fewer"),
        (result([1] * 9, lookup_proposed_at=[4]), "8 of 18 drafts were lookups.*LOOKUP=off"),
    ],
)
def test_drafts_that_are_not_alike_are_not_compared(ours: Result, sentence: str) -> None:
    theirs = {name: [result([1, 2])] for name in "ab"}
    comparison = compared({name: [ours] for name in "ab"}, theirs)
    assert comparison.equal is None
    assert comparison.positions == ()
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(comparison.obstacle)


def test_one_prompt_or_none() -> None:
    one = {"a": [result([1])]}
    assert compare(one, {}) is None
    assert compared(one, one).equal is None
