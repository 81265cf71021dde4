"""Where drafts come from: a drafter over gRPC, or one in this process."""

from __future__ import annotations

from importlib.metadata import entry_points

import torch

from specserve.settings import StartError
from specwire.local_drafter import GROUP, NAME, LocalFactory, LocalSetup
from specwire.messages import DraftPort
from verifier_svc.model.target import Target
from verifier_svc.settings import VerifierSettings
from verifier_svc.speculation.feature_projection import Projector
from verifier_svc.speculation.grpc_client import DrafterClient


def drafter_port(settings: VerifierSettings, target: Target) -> DraftPort[torch.Tensor] | None:
    """The drafter that the settings name, not started; None where nothing is to be drafted.

    Raises:
        StartError: a drafter in this process is not installed, or cannot be loaded.
    """
    if not settings.speculation or settings.drafter is None:
        return None
    if settings.local_checkpoint is None:
        projector = Projector(target.device) if settings.projects else None
        return DrafterClient(settings.drafter, target.shape, target.devices, projector)
    setup = LocalSetup(
        checkpoint=settings.local_checkpoint,
        target=settings.target,
        shape=target.shape,
        dtype=settings.dtype,
        device=str(settings.torch_device),
        trust_remote_code=settings.trust_remote_code,
    )
    factory = _find_factory()
    try:
        return factory(setup)
    except StartError as error:
        raise StartError(f"--drafter: {error}") from None


def _find_factory() -> LocalFactory[torch.Tensor]:
    found = entry_points(group=GROUP, name=NAME)
    if not found:
        raise StartError(
            "--drafter: no local drafter is installed here; install holdcourse with its extra "
            "`drafter`, or name the HOST:PORT of one."
        )
    try:
        factory: LocalFactory[torch.Tensor] = next(iter(found)).load()
    except ImportError as error:
        raise StartError(
            f"--drafter: the local drafter cannot be loaded ({error}); install holdcourse with its "
            "extra `drafter`."
        ) from None
    return factory
