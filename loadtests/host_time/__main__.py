"""`python -m loadtests.host_time`: what a round costs the host, forwards apart."""

from __future__ import annotations

import pstats
import tempfile
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from rich.console import Console
from rich.progress import track

import speckernels as kernels
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.report_file import ReportFile
from loadtests.common.settings import ReportSettings
from loadtests.common.tables import console
from loadtests.host_time.bench import PROGRAM, Bench, Rounds
from loadtests.host_time.report import print_summary, summarize
from loadtests.peers.settings import split
from specserve import logs
from specserve.settings import Compile, setting


class HostTimeSettings(ReportSettings):
    """Measures the CPU time of the threads of a verifier and of a drafter in its process.

    The target has one layer, and what forwards take is left out: the rest is what a GPU waits for,
    or what runs beside it. Times are those that a thread had a core for, so that a busy machine
    changes them little. Drafts have one length, and are accepted by chance.
    """

    streams: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...],
        BeforeValidator(split),
        Field(min_length=1),
    ] = setting("1,16,64", "Streams at once; several numbers as 1,16,64.")
    temperature: Annotated[
        tuple[Annotated[float, Field(ge=0, le=2)], ...],
        BeforeValidator(split),
        Field(min_length=1),
    ] = setting("0,1", "Of the streams, 0 for greedy.")
    draft_length: int = setting(3, "Of all drafts, beside plain decoding.", ge=1, le=16)
    chance: float = setting(0.7, "Of each draft token to be accepted.", ge=0, le=1)
    rounds: int = setting(150, "Rounds of each run that are counted.", ge=1, le=400)
    profile: bool = setting(False, "Print calls of the verifier's rounds with drafts, too.")
    compile: Compile = setting("auto", "CPU kernels of ours, for drawing.")


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = HostTimeSettings.read(PROGRAM)
    logs.configure("host_time", "warning")
    kernels.load_kernels(settings.compile)
    torch.set_num_threads(1)
    measured: list[Rounds] = []
    document = ReportFile(settings, {"name": "one layer"})
    with UntilInterrupted() as block:
        async for rounds in _measure(settings):
            measured.append(rounds)
            document.add(rounds)
    summary = summarize(measured)
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


async def _measure(settings: HostTimeSettings) -> AsyncIterator[Rounds]:
    """Every number of streams at every temperature, plain and with drafts; then part by part."""
    lengths = (0, settings.draft_length)
    cases = list(product(settings.temperature, settings.streams, lengths, (False, True)))
    for temperature, streams, length, detailed in track(
        cases, "Rounds", console=Console(stderr=True)
    ):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), streams, length, settings.chance, detailed=detailed)
            yield await bench.run(temperature, settings.rounds)
    if settings.profile:
        await _profile(settings, temperature, streams)


async def _profile(settings: HostTimeSettings, temperature: float, streams: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), streams, settings.draft_length, settings.chance)
        profile = bench.profile()
        await bench.run(temperature, settings.rounds)
    pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    run(PROGRAM, main)
