"""`python -m loadtests.hop`: what it takes to carry features to a drafter in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import Self

from pydantic import field_validator, model_validator
from rich.console import Console
from rich.progress import track

from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.report_file import ReportFile
from loadtests.common.settings import ReportSettings
from loadtests.common.tables import console, number, table
from loadtests.hop.link import GRPC, UNIX, Block, linked
from specserve import logs
from specserve.settings import setting
from specwire.limits import MAX_ROUND_BYTES

PROGRAM = "loadtests.hop"


class HopSettings(ReportSettings):
    """Measures rounds of features there and back, by a Unix socket and by gRPC.

    Both ends are the services' own; the far one decodes what comes and answers with no drafter.
    """

    rows: str = setting("2,40,160", "Rows of a round, each number in turn.")
    width: int = setting(12288, "Elements of a row, of two bytes each.", ge=1)
    rounds: int = setting(30, "Rounds of a block.", ge=1)
    repeats: int = setting(8, "Blocks of each number of rows, by either way.", ge=1)

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: str) -> str:
        if not all(n.isdecimal() and 1 <= int(n) <= 2048 for n in rows.split(",")):
            raise ValueError("must be numbers from 1 to 2048 with commas between them")
        return rows

    @model_validator(mode="after")
    def _check_bytes(self) -> Self:
        if (size := 2 * self.width * self.sizes[-1]) > MAX_ROUND_BYTES // 2:
            raise ValueError(
                f"--rows and --width: a round has {size} bytes, at most {MAX_ROUND_BYTES // 2} "
                "are measured"
            )
        return self

    @property
    def sizes(self) -> list[int]:
        """Rows of a round, in rising order."""
        return sorted({int(n) for n in self.rows.split(",")})


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the blocks of each size and way."""

    hops: tuple[Block, ...]


def summarize(blocks: Sequence[Block]) -> Summary:
    """Sum up the blocks; the `repeat` of a sum is how many there were."""
    names = ("pack", "send", "there_and_back", "verifier", "drafter")
    hops: list[Block] = []
    for rows, way in sorted({(block.rows, block.way) for block in blocks}):
        same = [block for block in blocks if (block.rows, block.way) == (rows, way)]
        middles = (median(getattr(block, name) for block in same) for name in names)
        hops.append(Block(way, rows, len(same), *middles))
    return Summary(tuple(hops))


def print_summary(to: Console, summary: Summary) -> None:
    """Show it as a table."""
    made = table(
        "Rounds of features, ms",
        *("rows, way", "pack", "pack and send", "there and back", "verifier", "drafter"),
        caption="Processor time of the sending thread, clock, processor time of each process.",
    )
    for hop in summary.hops:
        times = (hop.pack, hop.send, hop.there_and_back, hop.verifier, hop.drafter)
        made.add_row(f"{hop.rows}, {hop.way}", *(number(each * 1e3, 3) for each in times))
    to.print(made)


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = HopSettings.read(PROGRAM)
    logs.configure("hop", "warning")
    document = ReportFile(settings, {"width": settings.width})
    blocks: list[Block] = []
    async with AsyncExitStack() as ends:
        links = [await ends.enter_async_context(linked(w, settings.width)) for w in (UNIX, GRPC)]
        places = [(n, repeat) for repeat in range(-1, settings.repeats) for n in settings.sizes]
        with UntilInterrupted() as block:
            for rows, repeat in track(places, "Rounds", console=Console(stderr=True)):
                for link in links[:: 1 if repeat % 2 else -1]:
                    done = await asyncio.to_thread(link.run, rows, settings.rounds, repeat)
                    if repeat >= 0:  # the one before warms up
                        blocks.append(done)
                        document.add(done)
    summary = summarize(blocks)
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


if __name__ == "__main__":
    run(PROGRAM, main)
