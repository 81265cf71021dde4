"""Committing drawn tokens, and how a generation ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import FinishReason, GenerationRequest, Sampling

EOS = frozenset({1})


def sequence(
    tokens: Iterable[int] = (5, 6, 7),
    output_start: int | None = None,
    max_model_len: int = 100,
    **sampling: Any,
) -> Sequence:
    tokens = tuple(tokens)
    start = len(tokens) if output_start is None else output_start
    made = Sequence(
        1, GenerationRequest("r", tokens, start, Sampling(**{"max_tokens": 50, **sampling})), EOS,
        max_model_len,
    )  # fmt: skip
    made.computed = len(tokens) - 1
    return made


def test_before_the_prefill_nothing_is_computed() -> None:
    fresh = Sequence(1, GenerationRequest("r", (5, 6, 7), 3, Sampling()), EOS, 100)
    assert (fresh.computed, fresh.entries, fresh.decoding, len(fresh)) == (0, 0, False, 3)
    fresh.computed = 2
    assert fresh.decoding


def test_a_prompt_of_one_token_has_nothing_to_prefill_ahead() -> None:
    assert Sequence(1, GenerationRequest("r", (5,), 1, Sampling()), EOS, 100).decoding


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_commit_keeps_all_but_the_last_drawn_token_computed(accepted: int) -> None:
    made = sequence()
    made.draft = (10, 11, 12)
    drawn = [*made.draft[:accepted], 20]
    assert made.commit(drawn, accepted) == tuple(drawn)
    assert made.tokens == [5, 6, 7, *drawn]
    assert made.decoding
    assert made.entries == len(made) - 1
    assert not made.draft
    assert made.usage.completion_tokens == accepted + 1
    assert made.finish is None


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_an_end_token_inside_a_draft_ends_there(at: int) -> None:
    made = sequence()
    drawn = [10, 11, 12, 13]
    drawn[at] = 1
    assert made.commit(drawn, 3) == tuple(drawn[: at + 1])
    assert made.finish is FinishReason.STOP
    assert made.tokens[-1] == 1
    assert made.usage.completion_tokens == at + 1


def test_stop_tokens_end_besides_the_models_own() -> None:
    made = sequence(stop_token_ids=frozenset({30}))
    assert made.end_tokens == {1, 30}
    assert made.commit([10, 30, 11], 2) == (10, 30)
    assert made.finish is FinishReason.STOP


def test_ignore_eos_leaves_the_callers_stop_tokens() -> None:
    made = sequence(ignore_eos=True, stop_token_ids=frozenset({30}))
    assert made.commit([1, 10], 1) == (1, 10)
    assert made.finish is None
    assert made.commit([30], 0) == (30,)
    assert made.finish is FinishReason.STOP


@pytest.mark.parametrize(("max_tokens", "max_model_len"), [(2, 100), (50, 5)])
def test_the_limit_of_tokens_or_context_ends_by_length(max_tokens: int, max_model_len: int) -> None:
    made = sequence(max_tokens=max_tokens, max_model_len=max_model_len)
    assert made.commit([10, 11, 12], 2) == (10, 11)
    assert made.finish is FinishReason.LENGTH
    assert len(made) == 5


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    made = sequence(max_tokens=2)
    made.commit([10, 1], 1)
    assert made.finish is FinishReason.STOP


def test_a_draft_leaves_room_for_the_bonus_token() -> None:
    made = sequence(max_tokens=4)
    assert made.room_for_draft == 3
    made.commit([10, 11], 1)
    assert made.room_for_draft == 1
    made.commit([12], 0)
    assert made.room_for_draft == 0
    made.commit([13], 0)
    assert made.finish is FinishReason.LENGTH
    assert made.room_for_draft == 0


def test_a_resumed_generation_goes_on_where_it_was() -> None:
    whole = sequence((5, 6, 7), max_tokens=6)
    whole.commit([10, 11, 10], 2)
    resumed = sequence((5, 6, 7, 10, 11, 10), output_start=3, max_tokens=6)
    assert resumed.limit == whole.limit == 9
    assert resumed.output_counts == whole.output_counts == Counter({10: 2, 11: 1})
    assert resumed.usage.prompt_tokens == 3
    for made in (whole, resumed):
        made.commit([12, 13, 14], 2)
        assert made.finish is FinishReason.LENGTH
        assert made.usage.completion_tokens == 6


def test_output_counts_leave_the_prompt_out() -> None:
    made = sequence((5, 5, 5))
    made.commit([5, 9], 1)
    assert made.output_counts == Counter({5: 1, 9: 1})
