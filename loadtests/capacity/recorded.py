"""Whether what is measured on a GPU is recorded there: figures of anything else mislead."""

from __future__ import annotations

from drafter_svc.build import Drafter
from specserve.settings import StartError
from verifier_svc.model.target import Target


def check_recorded(target: Target, drafter: Drafter) -> None:
    """Refuse what a GPU runs operator by operator; a CPU records nothing.

    Raises:
        StartError: the target's rounds or the drafter's chains are not recorded, or not any more.
    """
    if target.device.type != "cuda":
        return
    parts = {
        "rounds of the target": target.form == "graphs",
        "chains of the drafter": drafter.worker.alive,
    }
    for name, recorded in parts.items():
        if not recorded:
            raise StartError(f"The {name} are not recorded: see the log for why.")
