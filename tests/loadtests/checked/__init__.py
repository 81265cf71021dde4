"""Parts of a check that pass or fail in every way, and what they are given."""

from __future__ import annotations

from dataclasses import dataclass

from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.options import Options


@dataclass(frozen=True, slots=True)
class Light:
    """A bench without a device."""

    options: Options
    on_gpu: bool = True


def light(options: Options, findings: Findings) -> Light:
    """What parts here are given: nothing needs to be imported for it."""
    return Light(options)
