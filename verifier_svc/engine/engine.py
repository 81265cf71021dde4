"""The engine thread: schedule, run, commit. All torch operators of the service run here."""

from __future__ import annotations

import gc
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from speckernels.device import use
from specwire.messages import DrafterDown, DrafterUp, DraftEvent
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.engine.device_clock import clock_of
from verifier_svc.engine.timings import StepTimes, charge_step, charge_wait
from verifier_svc.hidden_states.runner import FeatureRunner
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.metrics import Metrics
from verifier_svc.model.loading.loader import TargetError
from verifier_svc.model.target import Target
from verifier_svc.request.documents import FeatureRequest
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import Event, Failed, Finished, GenerationRequest, RoundOutput
from verifier_svc.sampling.verification import Accept, Verification
from verifier_svc.scheduling.scheduler import ScheduledRows, Scheduler
from verifier_svc.speculation.coordinator import DraftCoordinator

logger = logging.getLogger(__name__)

Outbox = list[tuple[int, Event]]
Rounds = list[tuple[Sequence, RoundOutput]]

_NOT_FINITE = "The target's logits are not finite."


@dataclass(frozen=True, slots=True)
class Submit:
    """Start a generation under an id that the engine has not seen."""

    seq: int
    generation: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop a generation, or a client's documents; no further event of it is delivered."""

    seq: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread."""


Message = Submit | FeatureRequest | Cancel | Stop | DraftEvent


class Engine:
    """Runs generations on its own thread. Other threads only `post`."""

    def __init__(
        self,
        *,
        target: Target,
        cache: KVCache,
        scheduler: Scheduler,
        drafting: DraftCoordinator,
        policy: DraftLengthController,
        features: FeatureRunner,
        max_model_len: int,
        deliver: Callable[[Outbox], None],
        metrics: Metrics,
        accept: Accept,
    ) -> None:
        self._target = target
        self._cache = cache
        self._scheduler = scheduler
        self._drafting = drafting
        self._policy = policy
        self._features = features
        self._max_model_len = max_model_len
        self._deliver = deliver
        self._metrics = metrics
        self._accept_drafts = accept
        self._clock = clock_of(target.device)
        self._eos = target.eos_token_ids
        # Each message with the time of its arrival, in seconds of perf_counter.
        self._inbox: queue.SimpleQueue[tuple[float, Message]] = queue.SimpleQueue()
        self._outbox: Outbox = []
        self._stopped = False
        # When the last step did.
        self._ended = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step."""
        self.post(Stop())
        self.join()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def post(self, message: Message) -> None:
        """Hand over a message, from any thread."""
        self._inbox.put((time.perf_counter(), message))

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens of a sequence at most."""
        return self._max_model_len

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @torch.inference_mode()
    def _run(self) -> None:
        use(self._target.device)
        sys.setswitchinterval(1e-4)
        gc.freeze()
        while not (self._stopped or self._cache.lost):
            self._receive()
            try:
                self._step()
            except Exception:
                logger.exception("a step failed; its sequences end")
                self._fail_running("The engine failed on a step that this request was part of.")
            self._outbox += self._features.step(busy=bool(self._scheduler.running))
            if self._outbox:
                self._deliver(self._outbox)
                self._outbox = []

    def _step(self) -> None:
        """Schedule, run, commit, and ask for the next drafts."""
        begun, started = self._clock.mark(), time.perf_counter()
        self._admit(started)
        works = self._scheduler.plan(self._drafting.resting)
        if not works:
            self._account_wait(started)
            self._drafting.send((), started)
            self._ended = started
            return
        hidden = self._target.run(works, self._cache)
        ran = self._clock.mark()
        self._account_wait(started)
        rounds = self._commit(works, hidden)
        self._ended = drawn = time.perf_counter()
        start, stop = self._clock.when(begun), self._clock.when(ran)
        # Not known of a device that nobody has waited for.
        times = None if start is None or stop is None else StepTimes(start, stop, drawn)
        self._learn(works, times)
        decoded = self._scheduler.running
        self._forget([sequence.id for sequence in decoded if sequence.finish is not None])
        try:
            self._drafting.send(self._scheduler.running, drawn)
        finally:
            # What only tells of the step is done while the next drafts are made.
            self._emit_rounds(rounds)
            self._account(works, decoded, times)
            self._finish(decoded, drawn)

    def _receive(self) -> None:
        """Take messages: until the next step's drafts are gathered, or for ever while idle."""
        idle = not (self._scheduler.running or self._scheduler.waiting or self._features)
        while True:
            now = time.perf_counter()
            wait = self._drafting.gathering.remaining(now, self._drafting.resting)
            try:
                if idle:
                    arrived, message = self._inbox.get()
                elif wait:
                    arrived, message = self._inbox.get(timeout=wait)
                else:
                    arrived, message = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._handle(message, arrived)
            idle = idle and not (self._scheduler.waiting or self._features or self._stopped)

    def _handle(self, message: Message, arrived: float) -> None:
        match message:
            case Submit(seq, generation):
                sequence = Sequence(seq, generation, self._eos, self._max_model_len)
                sequence.arrived = arrived
                self._scheduler.add(sequence)
            case FeatureRequest():
                self._features.add(message)
            case Cancel(seq):
                self._forget([seq])
                self._features.drop(seq)
            case Stop():
                self._stopped = True
            case DrafterUp(_, welcome):
                reason = self._adopt(welcome.aux_layer_ids)
                self._drafting.receive(DrafterDown(reason) if reason else message, arrived)
            case _:
                self._drafting.receive(message, arrived)

    def _adopt(self, aux_layers: Items[int]) -> str | None:
        """Capture what the drafter needs; why that cannot be, where it cannot."""
        if tuple(aux_layers) == self._target.aux_layers:
            return None
        reason = None
        try:
            width = self._target.width_of(aux_layers)
            self._scheduler.forget_prefixes()
            self._drafting.recapture()
            self._cache.resize_features(width)
            self._target.capture(aux_layers)
        except TargetError as error:
            reason = str(error)
        except torch.OutOfMemoryError:
            reason = "the device has no memory for the layers that the drafter needs"
        if reason:
            logger.warning("speculation is off: %s", reason)
        return reason

    def _admit(self, now: float) -> None:
        for sequence in self._scheduler.admit():
            sequence.admitted = now
            sequence.timings.queue = now - sequence.arrived
            if (prefix := sequence.inherited) is not None:
                self._cache.copy(prefix.slot, sequence.slot, prefix.count)
            self._metrics.count_prompt(len(sequence), sequence.computed)
            self._drafting.open(sequence)

    def _commit(self, works: Items[ScheduledRows], hidden: torch.Tensor) -> Rounds:
        """Draw the tokens of every sequence that reached its last row, and accept drafts."""
        sequences: list[Sequence] = []
        for work in works:
            if work.draws:
                sequences.append(work.sequence)
            else:
                work.sequence.computed += len(work.tokens)
        if not sequences:
            return []
        greedy = [s.greedy for s in sequences for _ in range(1 + len(s.draft))]
        best, logits = self._target.head.score(hidden, greedy)
        rounds: Rounds = []
        drawn = self._accept_drafts(sequences, best, logits)
        for sequence, accepted in zip(sequences, drawn, strict=True):
            if accepted is None:
                self._fail(sequence, Failed(_NOT_FINITE, elsewhere=False))
            else:
                rounds.append((sequence, _commit(sequence, accepted)))
        return rounds

    def _emit(self, sequence: Sequence, event: Event) -> None:
        self._outbox.append((sequence.id, event))

    def _emit_rounds(self, rounds: Rounds) -> None:
        """Emit what was drawn, and learn from the drafts."""
        self._outbox += [(sequence.id, emitted) for sequence, emitted in rounds]
        for sequence, emitted in rounds:
            sequence.usage.count_round(emitted.source, emitted.drafted, emitted.accepted)
            self._drafting.observe(sequence.id)
        self._metrics.count_rounds(
            [(emitted.source, emitted.drafted, emitted.accepted) for _, emitted in rounds],
            sum(len(emitted.tokens) for _, emitted in rounds),
        )

    def _finish(self, decoded: Items[Sequence], now: float) -> None:
        """Emit the end of those that have ended."""
        for sequence in decoded:
            if sequence.finish is not None:
                timings = sequence.timings
                timings.host = max(0.0, now - sequence.first_token - timings.accounted)
                self._emit(sequence, Finished(sequence.finish, sequence.usage, timings))

    def _forget(self, seqs: Items[int], *, failed: bool = False) -> None:
        for sequence in self._scheduler.remove(seqs, failed=failed):
            self._drafting.close(sequence.id)

    def _fail_running(self, reason: str) -> None:
        for sequence in self._scheduler.running:
            self._fail(sequence, Failed(reason))

    def _fail(self, sequence: Sequence, event: Failed) -> None:
        self._emit(sequence, event)
        self._forget([sequence.id], failed=True)

    def _account_wait(self, now: float) -> None:
        """Charge the wait for drafts, and learn from those that did not come in time."""
        gathering, resting = self._drafting.gathering, self._drafting.resting
        charge_wait(self._scheduler.running, gathering, self._ended, now)
        for request in gathering.late(resting):
            self._policy.observe_draft(request.length, now - request.started)
            self._metrics.missed_deadlines.inc()

    def _learn(self, works: Items[ScheduledRows], times: StepTimes | None) -> None:
        """Learn what a step cost, where that is known."""
        if times is not None:
            verified = sum(work.draws for work in works if work.draws == len(work.tokens))
            rows = sum(len(work.tokens) for work in works)
            self._policy.step_cost.observe(verified, times.drawn - times.started, rows - verified)

    def _account(
        self, works: Items[ScheduledRows], decoded: Items[Sequence], times: StepTimes | None
    ) -> None:
        """Charge a step to those that decoded, and count it."""
        if times is not None:
            charge_step(decoded, works, times)
        rows = sum(len(work.tokens) for work in works)
        seconds = None if times is None else times.ran - times.started
        self._metrics.observe_step(rows, seconds, self._scheduler)
        self._metrics.cohorts.set(2 if self._drafting.resting else 1)


def _commit(sequence: Sequence, drawn: Verification) -> RoundOutput:
    """Commit what was drawn for a sequence; returns what is to be emitted."""
    proposed, start, source = len(sequence.draft), len(sequence.tokens), sequence.draft_source
    accepted = len(drawn.tokens) - 1
    kept = sequence.commit(drawn.tokens, accepted)
    # Draft tokens beyond an end token were right and yet are not part of the output.
    accepted = min(accepted, len(kept))
    return RoundOutput(start, kept, proposed, accepted, source, drawn.logprobs[: len(kept)])
