"""What the commands that train have in common."""

import signal
from contextlib import ExitStack, closing
from types import FrameType

from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target.feature_source import FeatureSource
from drafter_svc.train.target.local_source import LocalSource
from drafter_svc.train.target.target import Target


class StopOnSignal:
    """Turns the first SIGINT or SIGTERM into an answer; a second one ends the process."""

    def __init__(self) -> None:
        self.stopped = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.stopped = True
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        return self.stopped


def make_source(settings: TrainSettings, target: Target, stack: ExitStack) -> FeatureSource:
    """Where the target runs: in this process, or at ``settings.verifiers``."""
    if not settings.verifiers:
        return LocalSource(target)
    # Only here: a run on one machine needs no gRPC.
    from drafter_svc.train.target.remote_source import RemoteSource

    return stack.enter_context(closing(RemoteSource(settings.verifiers, target.fingerprint)))
