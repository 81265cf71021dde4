"""Starts the drafter service: `python -m drafter_svc --checkpoint FOLDER --target TARGET`."""

import os
import sys
from functools import partial
from importlib.metadata import version

from drafter_svc.engine import Engine
from drafter_svc.load import load_drafter
from drafter_svc.service import NAME, DrafterService
from drafter_svc.settings import DrafterSettings
from specwire import kernels, logs, serving
from specwire.apart import apart
from specwire.v1 import drafter_pb2_grpc

PROGRAM = "drafter_svc"
# The drain ends all Draft and Bulk streams itself.
_GRACE_SECONDS = 2.0


async def main() -> None:
    """Serve until a signal ends it."""
    settings = DrafterSettings.read(PROGRAM)
    logs.configure("drafter")
    serving.check_bindable(settings.listen)
    serving.serve_metrics(settings.listen, settings.metrics_port)
    kernels.prepare(settings.compile, settings.cpu_level)
    drafter = apart(load_drafter, settings, version("holdcourse"))
    # The engine's thread and the event loop take turns often, so that neither waits for long.
    sys.setswitchinterval(1e-4)
    # A drafter whose engine failed has nothing left to drain.
    engine = Engine(drafter.worker, partial(os._exit, 1), settings.threads)
    engine.start()
    service = DrafterService(
        engine,
        drafter.description,
        same_host=settings.same_host,
        projection=drafter.projection,
    )
    server = serving.ServiceServer(
        NAME, lambda to: drafter_pb2_grpc.add_DrafterServiceServicer_to_server(service, to)
    )
    await serving.serve(server, settings.listen, grace=_GRACE_SECONDS, on_drain=service.drain)
    engine.stop()


if __name__ == "__main__":
    serving.run(PROGRAM, main)
