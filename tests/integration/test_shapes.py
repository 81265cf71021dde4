"""Drafters of other shapes through the services: each chain is accepted as far as replay says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from drafter_svc.formats.checkpoint import LoadedDrafter, load_checkpoint, save_checkpoint
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.evaluation.replay import draft_chains
from drafter_svc.train.target.hidden_state_hooks import keep_states
from drafter_svc.train.target.target import Target
from specwire.v1 import drafter_pb2, verifier_pb2
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub
from tests.integration.conftest import Cluster, wait_until

PROMPT, LENGTH, DRAFTS = [0, *range(20, 40)], 120, 4
# 4 is the tiny target's last state.
SHAPES: list[dict[str, Any]] = [
    {"mtp_head": True, "aux_layers": (4,)},
    {"num_hidden_layers": 2, "own_embeddings": True, "aux_layers": (0, 2, 4)},
]


@pytest.fixture(params=SHAPES, ids=str)
def checkpoint(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    config = load_checkpoint(tiny_checkpoint, dtype=torch.float32).config
    torch.manual_seed(1)
    module = EagleDrafter(replace(config, **request.param))
    save_checkpoint(tmp_path / "checkpoint", module, torch.arange(config.vocab_size))
    return tmp_path / "checkpoint"


@pytest.fixture
def stub(tiny_llama: Path, checkpoint: Path, tmp_path: Path) -> Iterator[VerifierServiceStub]:
    running = Cluster(tmp_path, tiny_llama, checkpoint, "")
    try:
        running.start_drafter()
        running.start_verifier()
        running.wait()
        with grpc.insecure_channel(running.verifier) as channel:
            yield VerifierServiceStub(channel)
    finally:
        running.stop()


def generate(stub: VerifierServiceStub) -> tuple[list[int], list[verifier_pb2.Tokens]]:
    """All tokens, and the frames whose draft was a chain's."""
    sampling = verifier_pb2.Sampling(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    asked = verifier_pb2.GenerateRequest(
        request_id="shapes", tokens=PROMPT, output_start=len(PROMPT), sampling=sampling
    )
    tokens, chains = list(PROMPT), []
    for frame in stub.Generate(asked):
        if frame.HasField("tokens"):
            tokens += frame.tokens.ids
            if frame.tokens.source == drafter_pb2.DRAFT_SOURCE_CHAIN and frame.tokens.drafted:
                chains.append(frame.tokens)
    return tokens, chains


def replayed(model: PreTrainedModel, loaded: LoadedDrafter, tokens: list[int]) -> list[list[int]]:
    """What the drafter proposes at each column of a text, computed in one pass."""
    keep_states(model.base_model)
    target = Target(model, None, "", "")
    ids = torch.tensor(tokens)
    features, _ = target.capture(ids[None], loaded.config.aux_layers)
    proposals: list[list[int]] = draft_chains(
        loaded.module,
        target.embedding,
        loaded.target_ids,
        ids,
        features[0],
        columns=torch.arange(len(ids) - 1),
        length=DRAFTS,
    ).tolist()
    return proposals


def test_chains_are_accepted_as_far_as_replay_says(
    stub: VerifierServiceStub, checkpoint: Path, tiny_llama: Path
) -> None:
    tokens: list[int] = []
    chains: list[verifier_pb2.Tokens] = []

    def drafted() -> bool:
        """Whether the drafter was there, and in time on a busy machine."""
        nonlocal tokens, chains
        tokens, chains = generate(stub)
        return len(chains) > 5 and any(frame.accepted for frame in chains)

    wait_until(drafted, "enough chains")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    prompt = torch.tensor([PROMPT])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=LENGTH, do_sample=False,
        min_new_tokens=LENGTH, pad_token_id=1, eos_token_id=None,
    )  # fmt: skip
    assert tokens == expected[0].tolist()

    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    proposals = replayed(model, loaded, tokens)
    accepted = []
    for frame in chains:
        # The column that proposes token i stands two before it.
        pairs = zip(
            proposals[frame.start - 2][: frame.drafted], tokens[frame.start :], strict=False
        )
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        assert frame.accepted == right, frame
        accepted.append(right)
    assert sum(accepted) > 0
