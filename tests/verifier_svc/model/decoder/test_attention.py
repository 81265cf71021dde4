"""Packed attention over slots beside transformers' eager attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import speckernels as kernels
from speckernels import AttentionMetadata
from tests.support.fake_flash_attention import record_bodies
from tests.support.running_engine import target_of
from tests.support.tiny_llama import write_tiny_llama
from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockRange, blocks_for
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import AttentionPlan, Unsupported, packed_attention
from verifier_svc.model.decoder.cuda_graph_backend import CudaGraphBackend
from verifier_svc.model.target import Target
from verifier_svc.request.sequence import Sequence as Generating
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.scheduling.scheduler import ScheduledRows

BLOCKS = 40


@pytest.fixture(scope="module", params=["auto", "off", "graphs"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A target whose heads the compiled kernels take: with them, without, and as on a GPU."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("target"), hidden_size=64)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "graphs":
            record_bodies(patch)
            assert isinstance(target_of(folder)._body, CudaGraphBackend)
        else:
            kernels.load_kernels(request.param)
        yield folder
    kernels.load_kernels("off")


@pytest.fixture(scope="module")
def eager(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.fixture
def target(folder: Path) -> Target:
    return target_of(folder)


@pytest.fixture
def cache(target: Target) -> KVCache:
    """A used cache: what is left in its slots must not matter."""
    cache = KVCache(
        blocks=BLOCKS, layers=target.num_layers, kv_heads=target.kv_heads,
        head_dim=target.head_dim, feature_width=target.feature_width, dtype=target.dtype,
        device=target.device,
    )  # fmt: skip
    for pool in (*cache.keys, *cache.values):
        pool.normal_(std=30.0)
    return cache


def text_of(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 97, (length,), generator=generator).tolist())


def sequence(tokens: Sequence[int], first_block: int) -> Generating:
    generation = GenerationRequest("r", tuple(tokens), len(tokens), Sampling())
    made = Generating(first_block, generation, frozenset(), 10**6)
    made.extent = BlockRange(first_block, blocks_for(len(tokens)))
    assert first_block + made.extent.count <= BLOCKS
    return made


def expected(eager: Any, tokens: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = eager(torch.tensor([list(tokens)])).logits[0]
    return logits


def run(target: Target, cache: KVCache, *pieces: tuple[Generating, int, Sequence[int]]) -> Any:
    """fp32 logits of all rows of one packed batch, by piece (sequence, position, tokens)."""
    works = [
        ScheduledRows(s, position, tuple(tokens), len(tokens)) for s, position, tokens in pieces
    ]
    with torch.inference_mode():
        logits = target.head.logits(target.run(works, cache))
    return torch.split(logits, [len(work.tokens) for work in works])


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# Cuts of sequences into pieces: whole prompts, chunks of one row and of many, across blocks.
CUTS = {
    "one prompt": [[20]],
    "one token": [[1]],
    "row by row": [[1, 1, 1, 1]],
    "chunks": [[5, 11, 16, 1, 7]],
    "a block and its neighbours": [[15, 2], [16, 1], [17, 1]],
    "prompt beside decoding": [[30, 1, 1], [4, 20, 9], [1, 33, 1]],
    "drafts beside chunks": [[16, 9, 5], [3, 8, 1], [40, 2, 6], [1, 1, 1]],
}


@pytest.mark.parametrize("name", CUTS)
def test_every_mix_of_segments_equals_eager_attention(
    target: Target, cache: KVCache, eager: Any, name: str
) -> None:
    texts, sequences, block = [], [], 3
    for i, cut in enumerate(CUTS[name]):
        texts.append(text_of(sum(cut), i))
        sequences.append(sequence(texts[-1], block))
        block += blocks_for(sum(cut))
    wanted = [expected(eager, text) for text in texts]
    done = [0] * len(texts)
    for step in range(max(map(len, CUTS[name]))):
        pieces = []
        for i, cut in enumerate(CUTS[name]):
            if step < len(cut):
                pieces.append((sequences[i], done[i], texts[i][done[i] : done[i] + cut[step]]))
        rows = run(target, cache, *pieces)
        for (one, start, tokens), got in zip(pieces, rows, strict=True):
            i = sequences.index(one)
            close(got, wanted[i][start : start + len(tokens)])
            done[i] = start + len(tokens)
    assert done == [len(text) for text in texts]


def test_a_rejected_draft_leaves_no_trace(target: Target, cache: KVCache, eager: Any) -> None:
    text, wrong = text_of(30, 1), text_of(9, 2)
    one = sequence(text, 0)
    run(target, cache, (one, 0, text[:14]))
    run(target, cache, (one, 14, (text[14], *wrong)))
    (rows,) = run(target, cache, (one, 15, text[15:18]))
    close(rows, expected(eager, text)[15:18])
    (rows,) = run(target, cache, (one, 18, text[18:]))
    close(rows, expected(eager, text)[18:])


def test_a_rows_result_does_not_depend_on_the_draft_behind_it(
    target: Target, cache: KVCache
) -> None:
    text = text_of(40, 3)
    one = sequence(text, 0)
    run(target, cache, (one, 0, text[:20]))
    (alone,) = run(target, cache, (one, 20, text[20:21]))
    for count in range(2, 9):
        (rows,) = run(target, cache, (one, 20, text[20 : 20 + count]))
        torch.testing.assert_close(rows[:1], alone, rtol=1e-5, atol=2e-5)


def test_only_the_sequences_own_slots_are_written(target: Target, cache: KVCache) -> None:
    before = [pool.clone() for pool in (*cache.keys, *cache.values)]
    text = text_of(20, 4)
    run(target, cache, (sequence(text, 5), 0, text))
    own = torch.zeros(cache.spare, dtype=torch.bool)
    own[5 * BLOCK_SIZE : 5 * BLOCK_SIZE + 20] = True
    for pool, old in zip((*cache.keys, *cache.values), before, strict=True):
        same = (pool == old).flatten(1).all(1)[: cache.spare]
        assert torch.equal(same, ~own)


@pytest.mark.parametrize("extra", ["position_bias", "indices"])
def test_what_changes_who_attends_to_whom_is_refused_by_name(extra: str) -> None:
    module, rows = torch.nn.Linear(1, 1), torch.zeros(1, 1, 1, 4)
    plan = AttentionPlan(AttentionMetadata([]), torch.zeros(0, dtype=torch.long), (), ())
    with plan.followed():
        with pytest.raises(Unsupported, match=f"Linear asks for {extra}"):
            packed_attention(module, rows, rows, rows, None, **{extra: 4})
        with pytest.raises(Unsupported, match="Linear has a mask of its own"):
            packed_attention(module, rows, rows, rows, rows)
