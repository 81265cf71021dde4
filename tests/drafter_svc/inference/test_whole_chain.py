"""The drafter as two kernels takes the very steps that it takes operator by operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import speckernels as kernels
from drafter_svc.inference.chain import Chain, ChainOutput
from drafter_svc.inference.chain_runner import ChainRequest
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache
from drafter_svc.inference.sampling import DraftVocabulary
from specwire.messages import SequenceContext
from tests.support.tiny_drafter import tiny_config, tiny_drafter

WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "target_hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "vocab_size": 128,
    "draft_vocab_size": 48,
}
SERVED: list[dict[str, Any]] = [
    {},
    {"norm_output": False},
    {"fc_norm": False},
    {"norm_before_residual": True},
    {"norm_before_residual": True, "norm_output": False},
    {"attention_bias": True},
    {"sliding_window": 4},
]
# Left to operators.
OTHERS: list[dict[str, Any]] = [
    {"num_hidden_layers": 2},
    {"qk_norm": True},
    {"fc_norm": False, "norm_before_fc": True},
    {"head_dim": 16},
    {"draft_vocab_size": 40},
    {"mtp_head": True, "fc_norm": False, "aux_layers": (3,)},
]


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    kernels.load_kernels("auto")
    if kernels.pack_tiles(torch.zeros(16, 32, dtype=torch.bfloat16)) is None:
        pytest.skip("no C++ compiler here")
    yield
    kernels.load_kernels("off")


class Side:
    """A chain and what it holds, run by kernels or not."""

    def __init__(self, *, whole: bool, **changes: Any) -> None:
        self.config = tiny_config(**WIDTHS | changes)
        module = tiny_drafter(self.config).bfloat16().eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        embedding = torch.randn(128, 64, generator=generator).bfloat16()
        fused = FusedDrafter(module, embedding, 128)
        count = self.config.draft_vocab_size
        vocabulary = DraftVocabulary(torch.arange(count) * 2 + 1, 128)
        shape = self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim
        self.cache = KVCache(*shape, torch.bfloat16, torch.device("cpu"), 1 << 20)
        for pool in (*self.cache.keys, *self.cache.values):
            pool.zero_()
        self.whole = fused.whole(vocabulary.target_ids)
        if not whole:
            fused.whole = lambda target_ids: None  # type: ignore[method-assign]
        self.chain = Chain(fused, vocabulary, self.cache)
        self.fuse = fused.fuse

    def run(
        self,
        shapes: list[tuple[int, int]],
        temperature: float,
        *,
        keys_only: bool = False,
        projected: bool = False,
    ) -> list[ChainOutput]:
        """Append entries in two batches of all sequences, then run their chains.

        No chain starts from the first batch: with `keys_only` it is run as if that were known.
        """
        generator = torch.Generator().manual_seed(2)
        slots = [self.cache.reserve((0, i), 128, set())[0] for i in range(len(shapes))]
        for part in range(2):
            batch, pieces = [], []
            for slot, (base, _) in zip(slots, shapes, strict=True):
                start, stop = part * (base // 2), base if part else base // 2
                if start < stop:
                    tokens = torch.randint(128, (stop - start,), generator=generator).tolist()
                    width = 64 * len(self.config.aux_layers)
                    features = torch.randn(stop - start, width, generator=generator)
                    batch.append(EntryRows(slot, start, tokens))
                    rows = features.bfloat16()
                    pieces.append(self.fuse(rows) if projected else rows)
            self.chain.append(batch, pieces, keys_only=keys_only and not part)
        requests = [
            ChainRequest(slot, base, length, SequenceContext(3, 6, seed=i, temperature=temperature))
            for i, (slot, (base, length)) in enumerate(zip(slots, shapes, strict=True))
        ]
        return self.chain.draft(requests)


@pytest.mark.parametrize("toggles", SERVED, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_kernels_take_the_steps_of_operators(toggles: dict[str, Any], temperature: float) -> None:
    quick, plain = (Side(whole=whole, **toggles) for whole in (True, False))
    assert quick.whole is not None
    shapes = [(1, 3), (50, 6), (9, 6), (5, 1)] + [(7, 2)] * 14
    assert quick.run(shapes, temperature) == plain.run(shapes, temperature)
    assert torch.equal(quick.cache.keys[0], plain.cache.keys[0])
    assert torch.equal(quick.cache.values[0], plain.cache.values[0])


@pytest.mark.parametrize("toggles", SERVED, ids=str)
def test_rows_that_come_projected_are_run_as_captured_ones(toggles: dict[str, Any]) -> None:
    captured, projected = (Side(whole=True, **toggles) for _ in range(2))
    shapes = [(1, 3), (50, 6), (9, 6), (5, 1)] + [(7, 2)] * 14
    assert projected.run(shapes, 0.0, projected=True) == captured.run(shapes, 0.0)
    assert torch.equal(projected.cache.keys[0], captured.cache.keys[0])
    assert torch.equal(projected.cache.values[0], captured.cache.values[0])


@pytest.mark.parametrize("toggles", SERVED, ids=str)
def test_keys_and_values_alone_are_those_of_a_whole_run(toggles: dict[str, Any]) -> None:
    shapes = [(80, 3), (50, 6), (9, 6)] + [(7, 2)] * 14
    whole, alone = (Side(whole=True, **toggles) for _ in range(2))
    assert alone.run(shapes, 0.0, keys_only=True) == whole.run(shapes, 0.0)
    assert torch.equal(alone.cache.keys[0], whole.cache.keys[0])
    assert torch.equal(alone.cache.values[0], whole.cache.values[0])


def test_a_prompt_of_many_rows_is_left_to_operators() -> None:
    quick, plain = (Side(whole=whole) for whole in (True, False))
    assert quick.run([(100, 4), (3, 4)], 0.0) == plain.run([(100, 4), (3, 4)], 0.0)


@pytest.mark.parametrize("toggles", OTHERS, ids=str)
def test_other_drafters_are_left_to_operators(toggles: dict[str, Any]) -> None:
    assert Side(whole=True, **toggles).whole is None


def test_a_row_that_is_not_a_number_has_no_confidence() -> None:
    side = Side(whole=True)
    slot, _ = side.cache.reserve((0, 0), 64, set())
    side.chain._states.rows[slot.number] = torch.nan
    guess = side.chain.draft([ChainRequest(slot, 4, 3, SequenceContext(3, 1))])[0]
    assert guess.confidence == (0.0, 0.0, 0.0)
    assert all(0 <= token < 128 for token in guess.tokens)
