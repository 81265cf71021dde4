"""What is charged to the sequences for the time that passes. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from verifier_svc.request.sequence import Sequence
from verifier_svc.scheduling.scheduler import ScheduledRows
from verifier_svc.speculation.pending_drafts import PendingDrafts


@dataclass(frozen=True, slots=True)
class StepTimes:
    """When a step started, when its rows had been run, and when tokens had been drawn from them."""

    started: float
    ran: float
    drawn: float


def charge_wait(
    running: Iterable[Sequence], gathering: PendingDrafts, ended: float, now: float
) -> None:
    """Charge the seconds from the end of the last step to those that wait for drafts."""
    by_id = {sequence.id: sequence for sequence in running}
    for request in gathering.requests():
        total = now - max(request.started, ended)
        compute = min(total, request.cost.compute_us * 1e-6)
        queued = min(total - compute, request.cost.queue_us * 1e-6)
        wire = total - compute - queued
        for seq in request.awaited:
            if gathering.awaited(seq) is request and seq in by_id:
                timings = by_id[seq].timings
                timings.drafter += compute
                timings.drafter_queue += queued
                timings.wire += wire


def charge_step(running: Iterable[Sequence], works: Items[ScheduledRows], times: StepTimes) -> None:
    """Charge a step to all who decode, since who rests waits for its turn, or end a prefill."""
    target, draw = times.ran - times.started, times.drawn - times.ran
    for sequence in running:
        if sequence.first_token:
            timings = sequence.timings
            timings.target += target
            timings.draw += draw
    for work in works:
        sequence = work.sequence
        if work.draws and not sequence.first_token:
            sequence.first_token = times.drawn
            sequence.timings.prefill = times.drawn - sequence.admitted
