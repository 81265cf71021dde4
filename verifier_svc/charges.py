"""What is charged to the sequences for the time that passes. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

from verifier_svc.gathering import Gathering
from verifier_svc.scheduler import Work
from verifier_svc.sequence import Sequence


def charge_wait(
    running: Iterable[Sequence], gathering: Gathering, ended: float, now: float
) -> None:
    """Charge the seconds from the end of the last step to those that wait for drafts."""
    for sequence in running:
        if request := gathering.awaited(sequence.id):
            total = now - max(request.started, ended)
            compute = min(total, request.cost.compute_us * 1e-6)
            queued = min(total - compute, request.cost.queue_us * 1e-6)
            sequence.timings.drafter += compute
            sequence.timings.drafter_queue += queued
            sequence.timings.wire += total - compute - queued


def charge_step(
    running: Iterable[Sequence], works: Items[Work], started: float, ran: float, drawn: float
) -> None:
    """Charge a step to all who decode, since who rests waits for its turn, or end a prefill."""
    for sequence in running:
        if sequence.first_token:
            sequence.timings.target += ran - started
            sequence.timings.draw += drawn - ran
    for work in works:
        sequence = work.sequence
        if work.draws and not sequence.first_token:
            sequence.first_token = drawn
            sequence.timings.prefill = drawn - sequence.admitted
