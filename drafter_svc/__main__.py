"""Starts the drafter service: `python -m drafter_svc --checkpoint FOLDER --target TARGET`."""

import os
import sys
from functools import partial

from drafter_svc.build import load_drafter
from drafter_svc.engine.engine import Engine
from drafter_svc.service.servicer import DrafterServicer
from drafter_svc.settings import DrafterSettings
from speckernels import device
from speckernels.device import pick_device
from specserve import logs, server
from specserve.throwaway_thread import in_throwaway_thread
from specserve.version import version

PROGRAM = "drafter_svc"
# The drain ends all Draft and Bulk streams itself.
_GRACE_SECONDS = 2.0


async def main() -> None:
    """Serve until a signal ends it."""
    settings = DrafterSettings.read(PROGRAM)
    logs.configure("drafter")
    server.check_bindable(settings.listen)
    server.serve_metrics(settings.listen, settings.metrics_port)
    device.prepare(pick_device(settings.device, last=True), settings.compile, settings.cpu_level)
    drafter = in_throwaway_thread(load_drafter, settings, version())
    if drafter.projection is not None:
        drafter.worker.projected = drafter.projection.width
    # The engine's thread and the event loop take turns often, so that neither waits for long.
    sys.setswitchinterval(1e-4)
    # A drafter whose engine failed has nothing left to drain.
    engine = Engine(drafter.worker, partial(os._exit, 1), settings.threads)
    engine.start()
    service = DrafterServicer(
        engine,
        drafter.description,
        same_host=settings.same_host,
        projection=drafter.projection,
    )
    await server.serve(
        service.server(), settings.listen, grace=_GRACE_SECONDS, on_drain=service.drain
    )
    engine.stop()


if __name__ == "__main__":
    server.run(PROGRAM, main)
