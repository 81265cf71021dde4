"""A drafter service that takes rows and answers at once: `python -m loadtests.hop.echo`.

Messages, protocol and threads are the service's own; only nothing is drafted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from drafter_svc.engine.engine import Engine
from drafter_svc.engine.messages import Answers, RoundMessage
from drafter_svc.engine.worker import Worker
from drafter_svc.service.servicer import DrafterServicer
from specserve import logs, server
from specserve.settings import Address, Settings, setting
from specwire.handshake import TargetIdentity
from specwire.messages import Draft
from specwire.v1 import drafter_pb2 as pb

PROGRAM = "loadtests.hop.echo"
TOKENS = (1, 2, 3)


class EchoSettings(Settings):
    """Answers every round with drafts of no meaning, once its rows are decoded."""

    listen: Address = setting(..., "HOST:PORT to listen on.")
    width: int = setting(..., "Elements of a row of features.", ge=1)
    same_host: bool = setting(True, "Take rounds by a Unix socket.")


def shape_of(width: int) -> TargetIdentity:
    """The target that it says it was made for, whose only captured layer is `width` wide."""
    return TargetIdentity("hop", 1 << 16, width)


class Echo(Worker):
    """Holds nothing: every wish is answered from its message alone."""

    def __init__(self) -> None:
        """Take none of what a worker works with."""

    def warm_up(self) -> None:
        """Nothing is cold."""

    def report(self) -> None:
        """There is nothing to tell."""

    def open_link(self, link: int) -> None:
        """Any link is served."""

    def close_link(self, link: int) -> None:
        """Nothing was kept of it."""

    def serve(self, rounds: Sequence[RoundMessage]) -> dict[int, Answers]:
        """See `Worker`."""
        chances = (0.5,) * len(TOKENS)
        return {
            message.link: Answers([Draft(e.seq, e.stop, TOKENS, chances) for e in message.extends])
            for message in rounds
        }


async def main() -> None:
    """Serve until a signal ends it."""
    settings = EchoSettings.read(PROGRAM)
    logs.configure("echo", "warning")
    shape = shape_of(settings.width)
    described = pb.DescribeResponse(
        checkpoint_hash="echo",
        target_fingerprint=shape.fingerprint,
        aux_layer_ids=[0],
        target_hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        max_length=1 << 20,
        max_draft_tokens=len(TOKENS),
    )
    engine = Engine(Echo(), partial(os._exit, 1))
    engine.start()
    service = DrafterServicer(engine, described, same_host=settings.same_host)
    await server.serve(service.server(), settings.listen, grace=1.0, on_drain=service.drain)
    engine.stop()


if __name__ == "__main__":
    server.run(PROGRAM, main)
