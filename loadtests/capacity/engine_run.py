"""An engine of one arm, and what its streams get."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from prometheus_client import CollectorRegistry

from loadtests.capacity.kernel_profiler import KernelProfile
from loadtests.capacity.random_acceptance import RandomAcceptance
from loadtests.common.result import RequestFailed
from specserve.settings import StartError
from specwire.messages import CatchUpAck, DrafterUp, DraftEvent, DraftPort, Proposals
from verifier_svc.build import build_engine
from verifier_svc.engine.engine import Outbox, Submit
from verifier_svc.metrics import Metrics
from verifier_svc.model.target import Target
from verifier_svc.request.types import Failed, Finished, GenerationRequest, RoundOutput, Sampling
from verifier_svc.settings import VerifierSettings

LINK_SECONDS = 120.0
SILENCE_SECONDS = 120.0

Port = DraftPort[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Streams from when all of them decode to when the first ends. Times are in seconds.

    `round` is what one verification of a stream takes, with what it waits for; `verify` is a step's
    part of it; `draft` is what the drafter took for a batch, of `batch` chains on the median.
    `drafted` is the share of rounds whose drafts came in time, `accepted` that of draft tokens, 0
    without any. `kernels` is what all kernels of a round took, where they were recorded.
    """

    arm: str
    streams: int
    repeat: int
    tokens_per_second: float
    round: float
    verify: float
    draft: float
    batch: float
    drafted: float
    accepted: float
    kernels: float | None


@dataclass(slots=True)
class WindowRecorder:
    """What streams emit, and from when to when all of them decode."""

    streams: int
    kernels: KernelProfile | None
    began: float = 0.0
    ended: float = 0.0
    finished: list[Finished] = field(default_factory=list)
    _emitted: list[tuple[float, int, RoundOutput]] = field(default_factory=list)

    def take(self, at: float, box: Outbox) -> None:
        """Take what a step brought; kernels are recorded while all streams decode.

        Raises:
            RequestFailed: a stream failed.
        """
        for seq, event in box:
            if isinstance(event, Failed):
                raise RequestFailed(event.reason)
            if isinstance(event, RoundOutput):
                self._emitted.append((at, seq, event))
            elif isinstance(event, Finished):
                self.finished.append(event)
        if not self.began and len({seq for _, seq, _ in self._emitted}) == self.streams:
            self.began = self._record(at, KernelProfile.start)
        if self.began and not self.ended and self.finished:
            self.ended = self._record(at, KernelProfile.stop)

    def _record(self, at: float, change: Callable[[KernelProfile], None]) -> float:
        """Start or stop the recording, and say when that was done."""
        if self.kernels is None:
            return at
        change(self.kernels)
        return time.perf_counter()

    @property
    def rounds(self) -> list[RoundOutput]:
        """All that was emitted in that time."""
        return [event for at, _, event in self._emitted if self.began < at <= self.ended]


class EngineRun:
    """An engine that runs streams of random prompts; it owns its drafter's port."""

    def __init__(
        self,
        name: str,
        settings: VerifierSettings,
        target: Target,
        port: Port | None,
        coin: RandomAcceptance,
    ) -> None:
        """Build the engine; `coin` is what it accepts drafts by."""
        self.name = name
        #: Seconds of each row that the drafter was sent ahead of rounds.
        self.rows: list[float] = []
        self._target = target
        self._port = port
        self._coin = coin
        self._length = settings.fixed_draft_length or 0
        self._boxes: queue.SimpleQueue[tuple[float, Outbox]] = queue.SimpleQueue()
        # Time, chains and seconds of each batch.
        self._batches: list[tuple[float, int, float]] = []
        self._linked = threading.Event()
        self._submitted = 0
        metrics = Metrics(CollectorRegistry())
        self._engine = build_engine(settings, target, port, self._take, metrics, coin)

    @property
    def on_gpu(self) -> bool:
        """Whether the target is."""
        return self._target.device.type == "cuda"

    async def start(self) -> None:
        """Start the engine, and wait for its drafter.

        Raises:
            StartError: it does not come.
        """
        self._engine.start()
        if self._port is not None:
            self._port.start(self._hear)
            if not await asyncio.to_thread(self._linked.wait, LINK_SECONDS):
                raise StartError(f"The drafter of {self.name} has not linked.")

    async def close(self) -> None:
        """End both, and whoever still waits for streams."""
        if self._port is not None:
            await self._port.close()
        self._engine.stop()
        self._take([(0, Failed("The engine was stopped."))])

    async def run(
        self, streams: int, prompt: int, tokens: int, repeat: int, *, record: bool = False
    ) -> Window:
        """Let streams of random prompts decode `tokens` tokens each.

        Raises:
            RequestFailed: a stream failed, or nothing came for long.
        """
        self._batches.clear()
        self._coin.seed(repeat)
        chance = random.Random(repeat)
        for _ in range(streams):
            self._submitted += 1
            text = tuple(chance.randrange(self._target.vocab_size) for _ in range(prompt))
            sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
            given = GenerationRequest("capacity", text, prompt, sampling, self._length)
            self._engine.post(Submit(self._submitted, given))
        watch = WindowRecorder(streams, KernelProfile() if record else None)
        await asyncio.to_thread(self._follow, watch)
        return self._sum_up(watch, repeat)

    def _follow(self, watch: WindowRecorder) -> None:
        while len(watch.finished) < watch.streams:
            try:
                at, box = self._boxes.get(timeout=SILENCE_SECONDS)
            except queue.Empty:
                raise RequestFailed(f"{self.name}: the engine is silent.") from None
            watch.take(at, box)

    def _sum_up(self, watch: WindowRecorder, repeat: int) -> Window:
        rounds = watch.rounds
        if not rounds:
            raise RequestFailed("A stream ended before all decoded for long; raise --tokens.")
        seconds, each = watch.ended - watch.began, len(rounds) / watch.streams
        batches = [(n, s) for at, n, s in self._batches if n and watch.began < at <= watch.ended]
        timings = [(done.timings, done.usage.rounds) for done in watch.finished]
        return Window(
            arm=self.name,
            streams=watch.streams,
            repeat=repeat,
            tokens_per_second=sum(len(emitted.tokens) for emitted in rounds) / seconds,
            round=seconds / each,
            verify=median((took.target + took.draw) / count for took, count in timings),
            draft=median(took for _, took in batches) if batches else 0.0,
            batch=median(chains for chains, _ in batches) if batches else 0.0,
            drafted=sum(e.drafted > 0 for e in rounds) / len(rounds),
            accepted=sum(e.accepted for e in rounds) / max(1, sum(e.drafted for e in rounds)),
            kernels=watch.kernels.seconds / each if watch.kernels else None,
        )

    def _take(self, box: Outbox) -> None:
        """Called on the engine's thread."""
        self._boxes.put((time.perf_counter(), box))

    def _hear(self, event: DraftEvent) -> None:
        """Called on the port's thread."""
        now = time.perf_counter()
        if isinstance(event, DrafterUp):
            self._linked.set()
        elif isinstance(event, Proposals):
            chains = sum(bool(draft.tokens) for draft in event.drafts)
            self._batches.append((now, chains, event.cost.compute_us * 1e-6))
        elif isinstance(event, CatchUpAck):
            self.rows.append(event.compute_us * 1e-6 / event.rows)
        self._engine.post(event)
