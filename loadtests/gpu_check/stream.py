"""One stream of an engine, as a verifier would serve it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from prometheus_client import CollectorRegistry

from specserve.settings import StartError
from specwire.messages import DrafterUp, DraftEvent, DraftPort
from verifier_svc.build import build_engine
from verifier_svc.engine.engine import Outbox, Submit
from verifier_svc.metrics import Metrics
from verifier_svc.model.target import Target
from verifier_svc.request.types import Failed, GenerationRequest, RoundOutput, Sampling
from verifier_svc.settings import VerifierSettings

_SILENCE = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Text:
    """What was written, and how fast after its first round."""

    tokens: tuple[int, ...]
    rounds: int
    seconds: float

    @property
    def tokens_a_round(self) -> float:
        """Tokens a verification, its own included."""
        return len(self.tokens) / self.rounds

    @property
    def tokens_per_second(self) -> float:
        """Of all tokens, the prompt's time left out."""
        return len(self.tokens) / self.seconds


class Stream:
    """`with Stream(settings, target, port) as stream: stream.write(prompt, tokens)`."""

    def __init__(
        self, settings: VerifierSettings, target: Target, port: DraftPort[torch.Tensor] | None
    ) -> None:
        self._port = port
        self._length = settings.fixed_draft_length or 0
        self._boxes: queue.SimpleQueue[Outbox] = queue.SimpleQueue()
        self._linked = threading.Event()
        self._number = 0
        metrics = Metrics(CollectorRegistry())
        self._engine = build_engine(settings, target, port, self._boxes.put, metrics)

    def __enter__(self) -> Self:
        """Start, and wait for the drafter.

        Raises:
            StartError: it does not come.
        """
        self._engine.start()
        if self._port is not None:
            self._port.start(self._hear)
            if not self._linked.wait(_SILENCE):
                raise StartError("The drafter has not linked.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._port is not None:
            asyncio.run(self._port.close())
        self._engine.stop()

    def write(self, prompt: tuple[int, ...], tokens: int) -> Text:
        """Go on after a prompt, greedily, for so many tokens.

        Raises:
            RuntimeError: the engine failed, or is silent.
        """
        self._number += 1
        sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        given = GenerationRequest("gpu-check", prompt, len(prompt), sampling, self._length)
        self._engine.post(Submit(self._number, given))
        written: list[int] = []
        rounds, began = 0, 0.0
        while len(written) < tokens:
            try:
                box = self._boxes.get(timeout=_SILENCE)
            except queue.Empty:
                raise RuntimeError("the engine is silent") from None
            for seq, event in box:
                if isinstance(event, Failed):
                    raise RuntimeError(event.reason)
                if isinstance(event, RoundOutput) and seq == self._number:
                    began = began or time.perf_counter()
                    written += event.tokens
                    rounds += 1
        return Text(tuple(written), rounds, time.perf_counter() - began)

    def _hear(self, event: DraftEvent) -> None:
        """Called on the port's thread."""
        if isinstance(event, DrafterUp):
            self._linked.set()
        self._engine.post(event)
