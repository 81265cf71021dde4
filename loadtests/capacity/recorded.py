"""Whether what is measured on a GPU is recorded there: figures of anything else mislead."""

from __future__ import annotations

from typing import Any

from drafter_svc.load import Drafter
from specwire.settings import StartError
from verifier_svc.target import Target


def check_recorded(target: Target, drafter: Drafter) -> None:
    """Refuse what a GPU runs operator by operator; a CPU records nothing.

    Raises:
        StartError: the target's rounds or the drafter's chains are not recorded, or not any more.
    """
    if target.device.type != "cuda":
        return
    chain: Any = drafter.worker._chain
    parts = {"rounds of the target": target._body, "chains of the drafter": chain._graphs}
    for name, part in parts.items():
        if not alive(part):
            raise StartError(f"The {name} are not recorded: see the log for why.")


def alive(part: Any) -> bool:
    """Whether a decoder or chains are recorded, and recording has not failed."""
    if hasattr(part, "alive"):
        return bool(part.alive)
    recording = getattr(part, "_recording", None)
    return recording is not None and recording._record is not None
