from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loadtests.common.compare import (
    NEAR_TIE,
    allowed_near_ties,
    divergences,
    equal,
    first_difference,
)
from loadtests.common.result import Result
from loadtests.peers.transformers_child import Reference

PROMPT = [0, 40, 41, 42]


@pytest.fixture
def reference(tiny_llama: Path) -> Reference:
    return Reference(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval())


def generated(reference: Reference, count: int = 12) -> list[int]:
    tokens: list[int] = reference.generate(PROMPT, count, ignore_eos=True)["tokens"]
    assert len(tokens) == count
    return tokens


def make_rival(reference: Reference, token: int, rival: int, below: float) -> None:
    """Let `rival` score what `token` scores after the prompt, less `below`."""
    model = reference.model
    with torch.no_grad():
        hidden = model.model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        weight = model.lm_head.weight
        weight[rival] = weight[token] - below * hidden / hidden.dot(hidden)


@pytest.mark.parametrize(("below", "near_tie"), [(2e-5, True), (1e-2, False)])
def test_a_swapped_token_is_a_near_tie_only_if_it_is_one(
    reference: Reference, below: float, near_tie: bool
) -> None:
    best = generated(reference)[0]
    rival = (best + 5) % 97
    make_rival(reference, best, rival, below)
    expected = generated(reference)
    assert expected[0] == best
    follow = reference.generate([*PROMPT, rival], 11, ignore_eos=True)["tokens"]
    served = [rival, *follow]

    found = divergences(
        "81",
        0,
        reference.score([*PROMPT, *served], len(PROMPT), False),
        reference.score([*PROMPT, *expected], len(PROMPT), False),
        NEAR_TIE,
    )
    assert [d.position for d in found] == [0]
    assert found[0].gap == pytest.approx(below, abs=1e-5)
    assert found[0].near_tie is near_tie


def test_the_text_after_a_divergence_is_judged_too(reference: Reference) -> None:
    expected = generated(reference)
    served = [*expected]
    served[3], served[8] = (served[3] + 1) % 97, (served[8] + 1) % 97
    found = divergences(
        "81",
        3,
        reference.score([*PROMPT, *served], len(PROMPT), False),
        reference.score([*PROMPT, *expected], len(PROMPT), False),
        NEAR_TIE,
    )
    assert {3, 8} <= {d.position for d in found}
    assert not found[0].near_tie


def test_an_output_that_ends_too_early_diverges_at_its_end(reference: Reference) -> None:
    expected = generated(reference)
    found = divergences(
        "81",
        6,
        reference.score([*PROMPT, *expected[:6]], len(PROMPT), True),
        reference.score([*PROMPT, *expected], len(PROMPT), False),
        NEAR_TIE,
    )
    assert [d.position for d in found] == [6]
    assert not found[0].near_tie


def test_exact_ties_and_nan_are_divergences() -> None:
    (tie,) = divergences("81", 1, [0.0, 0.0, 0.0], [0.0, 0.0], NEAR_TIE)
    assert tie.near_tie
    broken = divergences("81", 1, [0.0, 0.0, float("nan")], [0.0, 0.0], NEAR_TIE)
    assert [d.near_tie for d in broken] == [True, False]


def test_noise_is_what_the_shape_of_a_forward_does_to_its_gaps(tiny_llama: Path) -> None:
    noise = {}
    for dtype in (torch.float32, torch.bfloat16):
        reference = Reference(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype).eval())
        noise[dtype] = reference.noise([*PROMPT, *generated(reference)], len(PROMPT))
    assert noise[torch.float32] < NEAR_TIE < noise[torch.bfloat16] < 1


def test_equality_is_of_tokens_and_of_how_they_ended() -> None:
    assert equal(Result((1, 2), 1.0, "stop"), Result((1, 2), 9.0, "stop"))
    assert not equal(Result((1, 2), 1.0, "stop"), Result((1, 2), 1.0, "length"))
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_near_ties_that_are_allowed() -> None:
    assert [allowed_near_ties(n) for n in (100, 10_000, 19_999, 20_000)] == [1, 1, 1, 2]


def test_generation_stops_at_the_end_token_unless_told_not_to(reference: Reference) -> None:
    first = generated(reference)[0]
    make_rival(reference, first, 1, -1.0)
    stopped = reference.generate(PROMPT, 8)
    assert (stopped["tokens"], stopped["finish_reason"]) == ([], "stop")
    going_on = reference.generate(PROMPT, 8, ignore_eos=True)
    assert (going_on["tokens"][0], len(going_on["tokens"])) == (1, 8)
    assert going_on["finish_reason"] == "length"


def test_sampling_is_determined_by_its_seed(reference: Reference) -> None:
    def sample(seed: int) -> list[int]:
        tokens: list[int] = reference.generate(PROMPT, 8, 1.0, seed, True)["tokens"]
        return tokens

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) > 1
