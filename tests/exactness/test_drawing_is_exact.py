"""A drafter changes speed, never the law of the text.

20,000 texts of consecutive seeds are drawn through whole rounds: drafts of three tokens, the
verifier's own acceptance, the correction or bonus token, and again until four tokens are there.
Chi-square tests compare every position and every adjacent pair with the target's softmax, and
every chain position of the first round given the draft tokens accepted before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM

import speckernels as kernels
from speckernels.exponential_noise import exponentials
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.sampling.verification import verify

VOCAB, LENGTH, DRAFT, DRAWS = 16, 4, 3, 20_000
PROMPT = (3, 8, 5)
SIGNIFICANCE = 1e-4

Floats = npt.NDArray[np.float64]
# Seed and tokens drawn so far to the next draft tokens.
Drafter = Callable[[int, tuple[int, ...], int], tuple[int, ...]]
# Sequence with a draft, logits of its rows, seed: the tokens that the round yields.
Rule = Callable[[Sequence, torch.Tensor, int], list[int]]


@dataclass
class World:
    """The target over all texts of four tokens, and the noise of all seeds."""

    # logits[d] is [VOCAB ** d, VOCAB]: after each text of d tokens, numbered in base VOCAB.
    logits: list[torch.Tensor]
    # [DRAWS, LENGTH, VOCAB]
    noise: torch.Tensor

    def row(self, text: tuple[int, ...]) -> torch.Tensor:
        index = 0
        for token in text:
            index = index * VOCAB + token
        return self.logits[len(text)][index]

    def probabilities(self, depth: int) -> Floats:
        """[VOCAB ** depth, VOCAB]"""
        return torch.softmax(self.logits[depth].double(), -1).numpy()

    def joint(self, depth: int) -> Floats:
        """Chance of every text of `depth` tokens, [VOCAB ** depth]."""
        chance = np.ones(1)
        for d in range(depth):
            chance = (chance[:, None] * self.probabilities(d)).reshape(-1)
        return chance


@pytest.fixture(scope="module")
def world(small_vocabulary: Path) -> World:
    model = AutoModelForCausalLM.from_pretrained(small_vocabulary, dtype=torch.float32)
    tails = torch.cartesian_prod(*[torch.arange(VOCAB)] * (LENGTH - 1))
    texts = torch.cat([torch.tensor(PROMPT).expand(len(tails), -1), tails], 1)
    with torch.inference_mode():
        rows = model(texts).logits[:, len(PROMPT) - 1 :].float()
    logits = [rows[:: VOCAB ** (LENGTH - 1 - d), d].contiguous() for d in range(LENGTH)]
    noise = exponentials(
        torch.arange(DRAWS).view(-1, 1, 1),
        torch.arange(len(PROMPT), len(PROMPT) + LENGTH).view(1, -1, 1),
        torch.arange(VOCAB),
        0,
    )
    return World(logits, noise)


@pytest.fixture(autouse=True)
def compiled_kernels() -> Iterator[None]:
    """As served: torch's operators alone would take minutes for so many draws."""
    kernels.load_kernels("auto")
    yield
    kernels.load_kernels("off")


def good(world: World) -> Drafter:
    """Races with the verifier's noise over a distribution that is near the target's."""
    generator = torch.Generator().manual_seed(0)
    guessed = [
        torch.softmax(rows.double() + 0.7 * torch.randn(rows.shape, generator=generator), -1)
        for rows in world.logits
    ]
    near = World([torch.log(rows) for rows in guessed], world.noise)
    return lambda seed, text, count: chain(near, seed, text, count)


def chain(world: World, seed: int, text: tuple[int, ...], count: int) -> tuple[int, ...]:
    drafted = text
    for _ in range(count):
        ratios = world.noise[seed, len(drafted)] * torch.exp(-world.row(drafted).double())
        drafted = (*drafted, int(ratios.argmin()))
    return drafted[len(text) :]


def random_drafter(world: World) -> Drafter:
    chance = random.Random(0)
    return lambda seed, text, count: tuple(chance.randrange(VOCAB) for _ in range(count))


def adversarial(world: World) -> Drafter:
    """Knows target and noise, proposes what will be drawn if it likes it, and else a wrong one."""

    def propose(seed: int, text: tuple[int, ...], count: int) -> tuple[int, ...]:
        wanted = chain(world, seed, text, count)
        return tuple(t if t < VOCAB // 2 else (t + 1 + seed) % VOCAB for t in wanted)

    return propose


DRAFTERS = {"good": good, "random": random_drafter, "adversarial": adversarial}


def exact(sequence: Sequence, logits: torch.Tensor, seed: int) -> list[int]:
    """The rule that is served."""
    (accepted,) = verify([sequence], torch.empty(0, dtype=torch.int64), logits)
    assert accepted is not None
    return accepted.tokens


@dataclass
class Drawn:
    """Texts [DRAWS, LENGTH], and how many tokens the first draft had accepted."""

    texts: npt.NDArray[np.int64]
    accepted: npt.NDArray[np.int64]


def draw_all(world: World, drafter: Drafter, rule: Rule) -> Drawn:
    texts = np.zeros((DRAWS, LENGTH), np.int64)
    accepted = np.zeros(DRAWS, np.int64)
    for seed in range(DRAWS):
        sampling = Sampling(seed=seed, max_tokens=LENGTH)
        sequence = Sequence(seed, GenerationRequest("", PROMPT, 3, sampling), frozenset(), 100)
        first = True
        while sequence.finish is None:
            text = tuple(sequence.tokens[3:])
            draft = drafter(seed, text, min(DRAFT, sequence.room_for_draft))
            sequence.draft = draft
            rows = [world.row((*text, *draft[:j])) for j in range(len(draft) + 1)]
            drawn = rule(sequence, torch.stack(rows), seed)
            if first:
                accepted[seed], first = len(drawn) - 1, False
            sequence.commit(drawn, len(drawn) - 1)
        texts[seed] = sequence.tokens[3:]
    return Drawn(texts, accepted)


def chi_square(counts: Floats, expected: Floats) -> float:
    """The p-value; cells that expect fewer than five are pooled."""
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 5:
            counts = np.append(counts[:-2], counts[-2:].sum())
            expected = np.append(expected[:-2], expected[-2:].sum())
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def p_values(world: World, drawn: Drawn) -> dict[str, float]:
    """Of every position, pair of positions, and chain position of the first round."""
    values: dict[str, float] = {}
    texts = drawn.texts
    for t in range(LENGTH):
        law = (world.joint(t)[:, None] * world.probabilities(t)).sum(0)
        values[f"position {t}"] = chi_square(
            np.bincount(texts[:, t], minlength=VOCAB).astype(float), DRAWS * law
        )
    for t in range(LENGTH - 1):
        law = world.joint(t + 2).reshape(-1, VOCAB * VOCAB).sum(0)
        pairs = texts[:, t] * VOCAB + texts[:, t + 1]
        values[f"positions {t} and {t + 1}"] = chi_square(
            np.bincount(pairs, minlength=VOCAB**2).astype(float), DRAWS * law
        )
    for j in range(1, DRAFT + 1):
        reached = drawn.accepted >= j
        if reached.sum() < 300:
            continue
        before = texts[reached, :j] @ (VOCAB ** np.arange(j - 1, -1, -1))
        expected = world.probabilities(j)[before].sum(0)
        values[f"chain position {j}"] = chi_square(
            np.bincount(texts[reached, j], minlength=VOCAB).astype(float), expected
        )
    return values


@pytest.mark.parametrize("name", DRAFTERS)
def test_texts_drawn_through_drafts_follow_the_targets_law(
    world: World, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw_all(world, DRAFTERS[name](world), exact)
    values = p_values(world, drawn)
    rate = drawn.accepted.mean() / DRAFT
    with capsys.disabled():
        print(f"\n{name} drafter: {rate:.3f} of the first draft accepted; p-values:")
        print("  " + ", ".join(f"{what} {value:.3f}" for what, value in values.items()))
    assert len(values) >= 2 * LENGTH - 1 + (name != "random") * DRAFT
    for what, value in values.items():
        assert value > SIGNIFICANCE / len(values), what


def test_a_drafter_does_not_even_change_the_texts(world: World) -> None:
    """The draws are keyed: each text is the same as without a draft, not only its law."""
    plain = [chain(world, seed, (), LENGTH) for seed in range(0, DRAWS, 40)]
    for make in DRAFTERS.values():
        drafter = make(world)
        for seed, wanted in zip(range(0, DRAWS, 40), plain, strict=True):
            text: tuple[int, ...] = ()
            while len(text) < LENGTH:
                draft = drafter(seed, text, min(DRAFT, LENGTH - len(text) - 1))
                generation = GenerationRequest(
                    "", (*PROMPT, *text), 3, Sampling(seed=seed, max_tokens=9)
                )
                sequence = Sequence(seed, generation, frozenset(), 100)
                sequence.draft = draft
                rows = [world.row((*text, *draft[:j])) for j in range(len(draft) + 1)]
                text = (*text, *exact(sequence, torch.stack(rows), seed))
            assert text == wanted


def without_residual(world: World) -> Rule:
    """Rejection sampling that forgets to correct what is drawn after a rejection."""
    chance = random.Random(0)

    def rule(sequence: Sequence, logits: torch.Tensor, seed: int) -> list[int]:
        drawn: list[int] = []
        weights = np.exp(logits.double().numpy())
        for j, row in enumerate((weights / weights.sum(-1, keepdims=True)).tolist()):
            # The random drafter draws every token with chance 1 / VOCAB.
            if j < len(sequence.draft) and chance.random() < row[sequence.draft[j]] * VOCAB:
                drawn.append(sequence.draft[j])
            else:
                return [*drawn, *chance.choices(range(VOCAB), row)]
        return drawn

    return rule


def top_two(world: World) -> Rule:
    """Accepts a draft token that is among the target's two best, whatever would be drawn."""

    def rule(sequence: Sequence, logits: torch.Tensor, seed: int) -> list[int]:
        drawn: list[int] = []
        best = logits.topk(2).indices.tolist()
        exact_draws = exact(sequence, logits, seed)
        for j, token in enumerate(sequence.draft):
            if token not in best[j]:
                break
            drawn.append(token)
        if len(drawn) < len(exact_draws):
            return exact_draws
        rest = Sequence(seed, sequence.generation, frozenset(), 100)
        rest.tokens = [*sequence.tokens, *drawn]
        return [*drawn, *exact(rest, logits[len(drawn) :][:1], seed)]

    return rule


@pytest.mark.parametrize(
    ("broken", "name"),
    [(without_residual, "random"), (top_two, "good")],
)
def test_a_broken_acceptance_rule_fails_the_same_test(
    world: World, broken: Callable[[World], Rule], name: str
) -> None:
    values = p_values(world, draw_all(world, DRAFTERS[name](world), broken(world)))
    assert min(values.values()) < SIGNIFICANCE / len(values)
