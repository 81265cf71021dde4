"""The verifier's real engine on its thread, driven by a test."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

from specwire.messages import DraftPort
from verifier_svc.build import build_engine, build_target, find_target
from verifier_svc.engine.engine import Cancel, Outbox, Submit
from verifier_svc.metrics import Metrics
from verifier_svc.model.target import Target
from verifier_svc.request.types import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    RoundOutput,
    Sampling,
)
from verifier_svc.settings import VerifierSettings


def settings_for(folder: Path, *flags: str) -> VerifierSettings:
    """Settings in fp32 with little memory."""
    given = ["--target", str(folder), "--dtype", "float32", "--kv-memory", "64MiB", *flags]
    return VerifierSettings.read("verifier_svc", given, {})


@cache
def target_of(folder: Path) -> Target:
    """The loaded target; one for all engines of a run."""
    settings = settings_for(folder)
    return build_target(settings, find_target(settings))


@cache
def reference_of(folder: Path) -> Any:
    """The same model as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@dataclass
class Result:
    """All that came of one generation."""

    prompt: tuple[int, ...]
    events: list[Event] = field(default_factory=list)

    @property
    def rounds(self) -> list[RoundOutput]:
        return [event for event in self.events if isinstance(event, RoundOutput)]

    @property
    def text(self) -> list[int]:
        """Prompt and output; checks that no index is missing or came twice."""
        tokens = list(self.prompt)
        for emitted in self.rounds:
            assert emitted.start == len(tokens)
            tokens += emitted.tokens
        return tokens

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return self.events[-1]

    @property
    def failed(self) -> Failed:
        assert isinstance(self.events[-1], Failed), self.events[-1]
        return self.events[-1]


class RunningEngine:
    """`with RunningEngine(folder, drafter, "--draft-length", "3") as engine: ...`."""

    def __init__(
        self,
        folder: Path,
        drafter: DraftPort[torch.Tensor] | None = None,
        *flags: str,
        target: Target | None = None,
    ) -> None:
        self.settings = settings_for(folder, *flags)
        self.target = target or target_of(folder)
        self.drafter = drafter
        self.results: dict[int, Result] = {}
        self._boxes: queue.SimpleQueue[Outbox] = queue.SimpleQueue()
        self.engine = build_engine(
            self.settings, self.target, drafter, self._boxes.put, Metrics(CollectorRegistry())
        )

    def __enter__(self) -> RunningEngine:
        self.engine.start()
        if self.drafter is not None:
            self.drafter.start(self.engine.post)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.engine.stop()

    def submit(
        self,
        prompt: Sequence[int],
        *,
        output_start: int | None = None,
        max_draft_tokens: int = 8,
        choice_index: int = 0,
        cache_salt: str = "",
        **sampling: Any,
    ) -> int:
        """Start a generation; greedy unless told otherwise."""
        seq = len(self.results) + 1
        prompt = tuple(prompt)
        self.results[seq] = Result(prompt)
        start = len(prompt) if output_start is None else output_start
        given = Sampling(**{"temperature": 0.0, "max_tokens": 32, **sampling})
        generation = GenerationRequest(
            "r", prompt, start, given, max_draft_tokens, choice_index, cache_salt
        )
        self.engine.post(Submit(seq, generation))
        return seq

    def cancel(self, seq: int) -> None:
        self.engine.post(Cancel(seq))

    def step(self, timeout: float = 30.0) -> list[int]:
        """Wait for the events of one step; returns whose they are."""
        box = self._boxes.get(timeout=timeout)
        for seq, event in box:
            self.results[seq].events.append(event)
        return [seq for seq, _ in box]

    def finish(self, *seqs: int) -> list[Result]:
        """Wait for the ends of generations."""
        results = [self.results[seq] for seq in seqs]
        while not all(r.events and not isinstance(r.events[-1], RoundOutput) for r in results):
            self.step()
        return results

    def generate(self, prompt: Sequence[int], **options: Any) -> Result:
        """Start a generation and wait for its end."""
        return self.finish(self.submit(prompt, **options))[0]


def greedy_texts(folder: Path, prompts: Iterable[Sequence[int]], length: int) -> list[list[int]]:
    """Prompt and `length` more tokens by transformers' generate, end tokens ignored."""
    model = reference_of(folder)
    return [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=length, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()
        for prompt in prompts
    ]  # fmt: skip
