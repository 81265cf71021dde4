"""Rounds of a wide target to a drafter in another process, larger than any message before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from drafter_svc.formats.checkpoint import save_checkpoint
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from specwire.handshake import TargetIdentity
from specwire.messages import (
    AppendEntries,
    DraftBudget,
    DrafterDown,
    DrafterUp,
    DraftEvent,
    Proposals,
    SequenceContext,
)
from tests.integration.conftest import Cluster
from verifier_svc.speculation.grpc_client import DrafterClient

# An 8B's: a row has 24 KiB.
HIDDEN, LAYERS = 4096, 3
SHAPE = TargetIdentity("wide", 97, HIDDEN)
MIB = 1 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter of random weights that is wide only where features enter."""
    config = DrafterConfig(
        hidden_size=16,
        target_hidden_size=HIDDEN,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        vocab_size=SHAPE.vocab_size,
        draft_vocab_size=SHAPE.vocab_size,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        fc_norm=False,
        norm_output=True,
        norm_before_residual=False,
        aux_layers=(0, 1, 2),
        target_fingerprint=SHAPE.fingerprint,
        own_embeddings=True,
    )
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("wide")
    save_checkpoint(folder, EagleDrafter(config), torch.arange(SHAPE.vocab_size))
    return folder


@pytest.fixture(scope="module", params=["on", "off"], ids=["same host", "gRPC"])
def drafter(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("drafter")
    running = Cluster(folder, tiny_llama, checkpoint, "", same_host=request.param)
    try:
        running.start_drafter()
        running.wait()
        yield running
    finally:
        running.stop()


@dataclass
class Verifier:
    """A link, and all that came by it."""

    client: DrafterClient
    events: asyncio.Queue[DraftEvent] = field(default_factory=asyncio.Queue)
    link: int = 0

    def ask(self, extends: list[AppendEntries], rows: torch.Tensor) -> None:
        """Send a round as the engine does."""
        features = [rows[: len(extend.tokens)] for extend in extends]
        self.client.round(self.link, extends, features, ())

    async def answered(self, seqs: set[int]) -> list[Proposals]:
        """The answers until all of `seqs` have a draft."""
        answers: list[Proposals] = []
        while seqs:
            event = await asyncio.wait_for(self.events.get(), 60)
            assert isinstance(event, Proposals), event
            assert not event.needs
            answers.append(event)
            for draft in event.drafts:
                assert draft.tokens
                seqs.remove(draft.seq)
        return answers


@pytest.fixture
async def verifier(drafter: Cluster) -> AsyncIterator[Verifier]:
    made = Verifier(DrafterClient(drafter.drafter, SHAPE))
    loop = asyncio.get_running_loop()

    def deliver(event: DraftEvent) -> None:
        loop.call_soon_threadsafe(made.events.put_nowait, event)

    made.client.start(deliver)
    linked = await asyncio.wait_for(made.events.get(), 60)
    assert isinstance(linked, DrafterUp), linked
    assert linked.welcome.max_round_bytes == 64 * MIB
    made.link = linked.link
    yield made
    await made.client.close()


def extends(count: int, rows: int, first: int) -> list[AppendEntries]:
    opening = SequenceContext(first_token=1, output_start=1)
    seqs = range(first, first + count)
    return [
        AppendEntries(seq, 0, tuple(range(1, rows + 1)), DraftBudget(1), opening) for seq in seqs
    ]


async def test_large_rounds_are_answered_and_the_link_stays(verifier: Verifier) -> None:
    rows = torch.randn(32, LAYERS * HIDDEN).to(torch.bfloat16)
    first = 1
    # Sequences, rows of each, MiB of them all, and messages that carry them.
    for count, each, size, messages in ((60, 3, 4.2, 1), (64, 32, 48, 1), (88, 32, 66, 2)):
        assert count * each * rows[0].nbytes == pytest.approx(size * MIB, rel=0.01)
        asked = extends(count, each, first)
        verifier.ask(asked, rows)
        answers = await verifier.answered({extend.seq for extend in asked})
        # The drafter may have joined them.
        assert 1 <= len(answers) <= messages
        first += count
    assert verifier.events.empty(), "the link has not been lost"


async def test_a_drafter_without_room_for_one_sequence_is_refused(
    drafter: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specwire.handshake.MAX_ROUND_BYTES", MIB)
    events: asyncio.Queue[DraftEvent] = asyncio.Queue()
    client = DrafterClient(drafter.drafter, SHAPE)
    client.start(events.put_nowait)
    event = await asyncio.wait_for(events.get(), 60)
    await client.close()
    assert isinstance(event, DrafterDown)
    assert event.reason.startswith("The drafter takes rounds of 1048576 bytes, one sequence's may")
