"""The drafter in a verifier's process, as a DraftPort: no gRPC, and nothing is encoded."""

import asyncio
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from drafter_svc import metrics
from drafter_svc.build import Drafter, load_drafter
from drafter_svc.engine.engine import Engine
from drafter_svc.settings import DrafterSettings
from speckernels import device
from specserve import logs
from specserve.throwaway_thread import in_throwaway_thread
from specserve.version import version
from specwire import codec, handshake
from specwire.errors import Incompatible
from specwire.handshake import TargetIdentity
from specwire.local_drafter import LocalSetup
from specwire.messages import AppendEntries, DrafterDown, DrafterUp, DraftEvent

_LINK = 1

_log = logs.get(__name__)


class LocalDrafter:
    """One drafter for one verifier, on a thread of its own. It fails without the verifier.

    On a GPU that both run on, torch's default stream keeps a copy of features before its use.
    """

    def __init__(self, drafter: Drafter, target: TargetIdentity, threads: int = 0) -> None:
        """Take a drafter that is not warm, the verifier's target, and see `Engine` for threads."""
        self._target = target
        self._welcome = codec.decode_welcome(drafter.description)
        self._engine = Engine(drafter.worker, self._fail, threads)
        self._deliver: Callable[[DraftEvent], None] = lambda event: None

    @classmethod
    def load(cls, setup: LocalSetup) -> "LocalDrafter":
        """Load what the setup names; the rest is up to the drafter's variables.

        Kernels are those that the process has prepared for its target, if that is on a CPU too.

        Raises:
            StartError: see `DrafterSettings.read` and `load_drafter`.
        """
        given = {
            "HOLDCOURSE_DRAFTER": setup.checkpoint,
            "HOLDCOURSE_TARGET": setup.target,
            "HOLDCOURSE_DTYPE": setup.dtype,
            "HOLDCOURSE_TRUST_REMOTE_CODE": "on" if setup.trust_remote_code else "off",
        }
        settings = DrafterSettings.read("local", [], os.environ | given)
        if settings.device == "auto":
            settings = settings.model_copy(update={"device": setup.device})
        if setup.device != "cpu":  # the process has prepared none
            own = torch.device(settings.device)
            device.prepare(own, settings.compile, settings.cpu_level)
        drafter = in_throwaway_thread(load_drafter, settings, version())
        return cls(drafter, setup.shape, settings.threads)

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        """Warm up, link, and deliver events from the drafter's thread from now on."""
        self._deliver = deliver
        try:
            handshake.check(self._target, handshake.announced(self._welcome))
        except Incompatible as error:
            self._unlink(str(error))
            return
        self._engine.start()
        self._engine.open_link(_LINK, deliver)
        self._engine.call(self._announce)

    async def close(self) -> None:
        """Answer what has come, and end the thread."""
        await asyncio.to_thread(self._engine.stop)

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[Tensor],
        closes: Sequence[int],
    ) -> None:
        """Hand over one round: `features[i]` is [len(extends[i].tokens), feature width]."""
        # The caller's rows are views of memory that it writes again; cat and clone copy them.
        rows = torch.cat(list(features)) if features else None
        self._engine.round(link, extends, rows, closes)

    def bulk(self, link: int, extend: AppendEntries, features: Tensor) -> None:
        """Hand over rows beyond a round's worth; an Ack answers."""
        self._engine.bulk(link, extend, features.clone())

    def _announce(self) -> None:
        _log.info("drafter linked", checkpoint=self._welcome.checkpoint_hash[:12])
        self._deliver(DrafterUp(_LINK, self._welcome))

    def _fail(self) -> None:
        metrics.LINKS.set(0)
        self._unlink("the drafter failed; it returns when the verifier is started again")

    def _unlink(self, reason: str) -> None:
        _log.warning("no drafter, decoding plainly", reason=reason)
        self._deliver(DrafterDown(reason))
