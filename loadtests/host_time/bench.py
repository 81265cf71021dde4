"""Both engines over a target of one layer, and the host's time of their rounds."""

from __future__ import annotations

import asyncio
import cProfile
import queue
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig

from drafter_svc.build import Drafter, load_drafter
from drafter_svc.service.in_process import LocalDrafter
from drafter_svc.settings import DrafterSettings
from loadtests.capacity.random_models import random_target, save_random_drafter
from loadtests.common.result import RequestFailed
from loadtests.host_time.forward import Forward
from loadtests.host_time.parts import Parts, after
from specserve.settings import StartError
from specserve.version import version
from specwire.messages import DrafterUp, DraftEvent, Proposals
from verifier_svc.build import build_engine
from verifier_svc.engine.engine import Outbox, Submit
from verifier_svc.metrics import Metrics
from verifier_svc.model.target import Target
from verifier_svc.request.types import Failed, Finished, GenerationRequest, RoundOutput, Sampling
from verifier_svc.settings import VerifierSettings

PROGRAM = "loadtests.host_time"
FORWARD = "forward"
PROMPT = 32
_SECONDS = 120.0
# Tokens of an output at most.
_LONGEST = 8000
# Rounds that are not counted.
_WARM = 8
_CONFIG = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
# What of an engine is timed: its parts by attribute, their methods, and what that work is.
_VERIFIER = (
    ("_scheduler", "admit", "plan"),
    ("_scheduler", "plan", "plan"),
    ("_target", "_pack", "pack"),
    ("", "_accept_drafts", "accept"),
    ("", "_receive", "receive"),
    ("_drafting", "_choose", "choose"),
    ("_drafting", "_judge", "choose"),
    ("_drafting", "send", "send"),
    ("_drafting", "observe", "score"),
    ("_metrics", "count_rounds", "count"),
    ("", "_account", "count"),
    ("", "_account_wait", "count"),
)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Medians over rounds that all streams ran in; milliseconds of a thread, without forwards.

    `to_send` is what of the verifier's lies between a forward and the request for the next drafts,
    0 without drafts. `drafter` is that of its thread, from one answer to the next.
    """

    streams: int
    draft_length: int
    temperature: float
    rounds: int
    tokens: float
    verifier: float
    to_send: float
    drafter: float
    parts: dict[str, float]


class Bench:
    """A verifier, with a drafter in its process where drafts have a length."""

    def __init__(
        self,
        folder: Path,
        streams: int,
        draft_length: int,
        chance: float,
        *,
        detailed: bool = False,
    ) -> None:
        """Build both; `chance` is that of a draft token to be accepted.

        Only `detailed` rounds tell of the verifier's parts: to time them takes time.
        """
        self._streams, self._draft_length = streams, draft_length
        config: Any = LlamaConfig(**_CONFIG)
        config.save_pretrained(folder)
        target = random_target(config, "one layer", torch.float32, torch.device("cpu"))
        self._port: LocalDrafter | None = None
        self._verifier, self._drafter = Parts(), Parts()
        if draft_length:
            drafter = _drafter(folder, draft_length, target)
            self._port = LocalDrafter(drafter, target.shape, threads=1)
            self._time_forwards(drafter.worker._chain)
            after(self._port, "round", self._note_send)
        self._vocab_size = target.vocab_size
        self._boxes: queue.SimpleQueue[Outbox] = queue.SimpleQueue()
        self._linked = threading.Event()
        # When the last forward ended, of the verifier's thread.
        self._forward_ended = 0.0
        self._to_send = 0.0
        self._told: list[tuple[float, float, dict[str, float]]] = []
        self._answers: list[dict[str, float]] = []
        self._profile: cProfile.Profile | None = None
        settings = _settings(folder, streams, draft_length)
        metrics = Metrics(CollectorRegistry())
        self._engine = build_engine(settings, target, self._port, self._take, metrics)
        # Where nothing is known of how long drafts take, they are waited for.
        setattr(self._engine._policy, "expected_draft", lambda length: 0.0)  # noqa: B010
        forward: Any = Forward(chance, target.vocab_size, target.hidden_size)
        target._body = target.head = forward
        for name in ("run", "score"):
            self._verifier.time(forward, name, FORWARD)
        after(forward, "score", self._note_forward)
        self._detailed = detailed
        for owner, name, part in _VERIFIER if detailed else ():
            self._verifier.time(getattr(self._engine, owner) if owner else self._engine, name, part)

    def _time_forwards(self, chain: Any) -> None:
        runner = chain._runner
        self._drafter.time(chain._entries, "_run", FORWARD)
        self._drafter.time(chain._entries, "_keep", FORWARD)
        self._drafter.time(runner, "_run", FORWARD)
        if runner._whole is not None:
            self._drafter.time(runner._whole, "draft", FORWARD)

    def profile(self) -> cProfile.Profile:
        """Profile the verifier's thread from its first event on."""
        self._profile = cProfile.Profile(time.thread_time)
        return self._profile

    async def run(self, temperature: float, rounds: int) -> Rounds:
        """Let all streams decode for so many rounds.

        Raises:
            StartError: the drafter does not come.
            RequestFailed: a stream failed, or nothing came for long.
        """
        self._engine.start()
        try:
            if self._port is not None:
                self._port.start(self._hear)
                if not await asyncio.to_thread(self._linked.wait, _SECONDS):
                    raise StartError("The drafter has not linked.")
            for seq in range(1, 1 + self._streams):
                self._engine.post(Submit(seq, self._generation(seq, temperature, rounds)))
            await asyncio.to_thread(self._follow, _WARM + rounds)
        finally:
            if self._port is not None:
                await self._port.close()
            self._engine.stop()
        return self._sum_up(temperature)

    def _generation(self, seq: int, temperature: float, rounds: int) -> GenerationRequest:
        chance = random.Random(seq)
        text = tuple(chance.randrange(self._vocab_size) for _ in range(PROMPT))
        # Streams begin one after the other: enough for those that began first.
        most = min(3 * (rounds + _WARM) * (1 + self._draft_length), _LONGEST)
        sampling = Sampling(temperature, seed=seq, max_tokens=most, ignore_eos=True)
        return GenerationRequest("host", text, PROMPT, sampling, self._draft_length)

    def _follow(self, rounds: int) -> None:
        """Wait for so many rounds of all streams, or until the first stream ends."""
        while len(self._told) < rounds:
            try:
                box = self._boxes.get(timeout=_SECONDS)
            except queue.Empty:
                raise RequestFailed("The engine is silent.") from None
            for _, event in box:
                if isinstance(event, Failed):
                    raise RequestFailed(event.reason)
                if isinstance(event, Finished):
                    return

    def _take(self, box: Outbox) -> None:
        """Called on the verifier's thread, once a round."""
        spent = self._verifier.cut()
        emitted = [event for _, event in box if isinstance(event, RoundOutput)]
        drafted = sum(event.drafted == self._draft_length for event in emitted)
        if len(emitted) == drafted == self._streams == len(box):
            tokens = sum(len(event.tokens) for event in emitted) / self._streams
            self._told.append((tokens, self._to_send, spent))
        if self._profile is not None and len(self._told) == _WARM and emitted:
            self._profile.enable()
        self._boxes.put(box)

    def _hear(self, event: DraftEvent) -> None:
        """Called on the drafter's thread, once a round."""
        spent = self._drafter.cut()
        if isinstance(event, Proposals) and len(event.drafts) == self._streams:
            self._answers.append(spent)
        elif isinstance(event, DrafterUp):
            self._linked.set()
        self._engine.post(event)

    def _note_forward(self) -> None:
        self._forward_ended = time.thread_time()

    def _note_send(self) -> None:
        self._to_send = time.thread_time() - self._forward_ended

    def _sum_up(self, temperature: float) -> Rounds:
        told, answers = self._told[_WARM:], self._answers[_WARM:]
        if not told:
            raise RequestFailed("Streams ended before all of them decoded; raise --rounds.")
        names = {name for *_, spent in told for name in spent if name != FORWARD}
        names = names if self._detailed else set()
        return Rounds(
            self._streams,
            self._draft_length,
            temperature,
            len(told),
            mean(tokens for tokens, *_ in told),
            median(_host_ms(spent) for *_, spent in told),
            median(1e3 * to_send for _, to_send, _ in told),
            median(map(_host_ms, answers)) if answers else 0.0,
            {n: 1e3 * median(s.get(n, 0.0) for *_, s in told) for n in sorted(names)},
        )


def _host_ms(spent: Mapping[str, float]) -> float:
    return 1e3 * (sum(spent.values()) - spent.get(FORWARD, 0.0))


def _settings(folder: Path, streams: int, draft_length: int) -> VerifierSettings:
    given = {
        "target": folder,
        "device": "cpu",
        "dtype": "float32",
        "draft-length": draft_length,
        "max-draft-tokens": max(1, draft_length),
        "max-sequences": streams,
        "kv-memory": "4GiB",
        "draft-deadline-ms": 10_000,
    }
    return VerifierSettings.read(PROGRAM, [f"--{n}={value}" for n, value in given.items()], {})


def _drafter(folder: Path, draft_length: int, target: Target) -> Drafter:
    save_random_drafter(folder / "drafter", target)
    flags = [
        f"--checkpoint={folder / 'drafter'}",
        f"--target={folder}",
        "--device=cpu",
        f"--max-draft-tokens={draft_length}",
        "--lookup=off",
    ]
    return load_drafter(DrafterSettings.read(PROGRAM, flags, {}), version())
