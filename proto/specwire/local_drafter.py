"""A drafter in the verifier's process: where it is found, and what it is given.

Services never import each other: the package that brings a drafter names its `LocalFactory` as
the entry point `NAME` of the group `GROUP`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from specwire.handshake import TargetIdentity
from specwire.messages import DraftPort, Features

GROUP = "holdcourse.drafters"
NAME = "local"


@dataclass(frozen=True, slots=True)
class LocalSetup:
    """What the verifier knows. The drafter's other settings are its own variables.

    `target` and `dtype` are the verifier's settings as they were given, `device` is where it
    runs, and `shape` that of the loaded target.
    """

    checkpoint: str
    target: str
    shape: TargetIdentity
    dtype: str
    device: str
    trust_remote_code: bool


class LocalFactory(Protocol[Features]):
    """Loads a drafter that `start` warms up and links."""

    def __call__(self, setup: LocalSetup) -> DraftPort[Features]:
        """Load what the setup names.

        Raises:
            StartError: a setting, the checkpoint, the target or the device cannot be used.
        """
