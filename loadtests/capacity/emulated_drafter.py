"""A drafter service that answers when a measured one would have: `... .emulated --delays JSON`.

It stands for a drafter with a GPU of its own where there is one GPU: messages, protocol and state
are the service's own. What it drafts comes from a tiny checkpoint on the CPU, and is of no use.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np

from drafter_svc.build import load_drafter
from drafter_svc.engine.engine import Deliver, Engine
from drafter_svc.service.servicer import DrafterServicer
from drafter_svc.settings import DrafterSettings
from specserve import logs, server
from specserve.settings import setting
from specserve.version import version
from specwire.messages import CatchUpAck, DraftSource, Proposals

PROGRAM = "loadtests.capacity.emulated_drafter"
DEVICE = "emulated"


@dataclass(frozen=True, slots=True)
class Delays:
    """What was measured: seconds of a batch by its number of chains, and of a row sent ahead."""

    batches: Mapping[int, float]
    row: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` gives."""
        given = json.loads(text)
        return cls({int(size): each for size, each in given["batches"].items()}, given["row"])

    def __str__(self) -> str:
        return json.dumps({"batches": dict(self.batches), "row": self.row})

    def of(self, event: Proposals | CatchUpAck) -> float:
        """Seconds of what an event answers; between measured sizes on a line through them."""
        if isinstance(event, CatchUpAck):
            return event.rows * self.row
        chains = sum(bool(d.tokens) and d.source is DraftSource.CHAIN for d in event.drafts)
        sizes = sorted(self.batches)
        seconds = np.interp(chains, sizes, [self.batches[size] for size in sizes])
        return float(seconds) * bool(chains)


class Delayed(Engine):
    """An engine that is busy for as long as the measured one was."""

    delays: Delays

    def open_link(self, link: int, deliver: Deliver) -> None:
        """See `Engine`; answers go out when their time has come."""
        super().open_link(link, partial(self._hold, deliver))

    def _hold(self, deliver: Deliver, event: Proposals | CatchUpAck) -> None:
        took = event.compute_us if isinstance(event, CatchUpAck) else event.cost.compute_us
        due = self.delays.of(event)
        time.sleep(max(0.0, due - took * 1e-6))
        if isinstance(event, Proposals):
            compute = max(took, round(due * 1e6))
            event = replace(event, cost=replace(event.cost, compute_us=compute))
        deliver(event)


class EmulatedSettings(DrafterSettings):
    """A drafter whose answers take as long as was measured elsewhere."""

    delays: str = setting(..., "What they take, as JSON.")


async def main() -> None:
    """Serve until a signal ends it."""
    settings = EmulatedSettings.read(PROGRAM)
    logs.configure(DEVICE, "warning")
    server.check_bindable(settings.listen)
    drafter = await asyncio.to_thread(load_drafter, settings, version())
    drafter.description.device = DEVICE
    engine = Delayed(drafter.worker, partial(os._exit, 1), settings.threads)
    engine.delays = Delays.parse(settings.delays)
    engine.start()
    service = DrafterServicer(engine, drafter.description, same_host=False)
    await server.serve(service.server(), settings.listen, grace=1.0, on_drain=service.drain)
    engine.stop()


if __name__ == "__main__":
    server.run(PROGRAM, main)
