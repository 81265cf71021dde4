"""`python -m loadtests.arrival`: what running streams feel of a long prompt that arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track

from loadtests.arrival.streams import Trial, arrive
from loadtests.common.client import Client
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.long_prompts import passages
from loadtests.common.prompts import Prompt, load_prompts
from loadtests.common.report_file import ReportFile
from loadtests.common.settings import MeasuringSettings
from loadtests.common.stats import Ratio, Spread, paired_ratio
from loadtests.common.tables import console, number, spread_ms, table, with_interval
from specserve.settings import setting

PROGRAM = "loadtests.arrival"
# Between two trials, for the streams of the first to be cancelled down to the verifier.
REST = 1.0  # seconds


class ArrivalSettings(MeasuringSettings):
    """Lets a long prompt arrive while streams decode, and compares their time per token.

    Each token takes the time since its stream's previous chunk, divided by the tokens of its
    chunk. During: gaps between chunks that overlap the time from the prompt's arrival to its first
    token. Before: those since all streams decode.
    """

    streams: int = setting(8, "Streams that decode.", ge=1)
    tokens: int = setting(4000, "Tokens of the prompt that arrives, about.", ge=1)
    before: int = setting(64, "Tokens of every stream before it arrives.", ge=2)
    max_tokens: int = setting(6144, "Room of each stream, which ends with the prefill.", ge=4)
    repeats: int = setting(5, "Times that it arrives.", ge=1)
    speculation: bool = setting(True, "Of all requests.")


@dataclass(frozen=True, slots=True)
class Summary:
    """All trials: tokens of all together, and ratios paired by trial."""

    prompt_tokens: tuple[int, ...]
    first_token: Spread
    before: Spread
    during: Spread
    p50: Ratio | None  # during by before
    p95: Ratio | None


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = ArrivalSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts)
    trials: list[Trial] = []
    async with Client(settings.url, settings.api_key) as client:
        document = ReportFile(settings, (await client.served()).card)
        texts = await passages(client, prompts, settings.tokens, settings.repeats)
        with UntilInterrupted() as block:
            async for trial in _trials(client, settings, prompts, texts):
                trials.append(trial)
                document.add(trial)
    summary = summarize(trials)
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


async def _trials(
    client: Client, settings: ArrivalSettings, prompts: Sequence[Prompt], texts: Sequence[str]
) -> AsyncIterator[Trial]:
    """All trials, after one to warm up."""

    async def one(repeat: int) -> Trial:
        places = range(repeat * settings.streams, (repeat + 1) * settings.streams)
        return await arrive(
            client,
            [prompts[place % len(prompts)].text for place in places],
            texts[repeat],
            repeat,
            before=settings.before,
            max_tokens=settings.max_tokens,
            speculation=settings.speculation,
        )

    await one(0)
    for repeat in track(range(settings.repeats), "Arrivals", console=Console(stderr=True)):
        await asyncio.sleep(REST)
        yield await one(repeat)


def summarize(trials: Sequence[Trial]) -> Summary:
    """Sum up."""
    before = {(0, trial.repeat): Spread.of(trial.before) for trial in trials}
    during = {(0, trial.repeat): Spread.of(trial.during) for trial in trials}

    def ratio(name: str) -> Ratio | None:
        return paired_ratio(
            {key: getattr(spread, name) for key, spread in during.items() if spread.p50},
            {key: getattr(spread, name) for key, spread in before.items() if spread.p50},
        )

    return Summary(
        tuple(trial.prompt_tokens for trial in trials),
        Spread.of([trial.first_token for trial in trials]),
        Spread.of([time for trial in trials for time in trial.before]),
        Spread.of([time for trial in trials for time in trial.during]),
        ratio("p50"),
        ratio("p95"),
    )


def print_summary(console: Console, summary: Summary) -> None:
    """Print a table."""
    made = table("Time per token of the streams, ms", "", "before", "during", "during by before")
    for name, ratio in (("p50", summary.p50), ("p95", summary.p95)):
        spreads = (getattr(spread, name) for spread in (summary.before, summary.during))
        cells = (number(None if time is None else time * 1e3, 1) for time in spreads)
        made.add_row(name, *cells, with_interval(ratio))
    made.caption = "Of all trials together; ratios: median of trials (95 % interval)."
    console.print(made)
    lengths = summary.prompt_tokens
    console.print(
        f"{len(lengths)} prompts of {min(lengths, default=0)} to {max(lengths, default=0)} tokens "
        f"arrived; their TTFT: {spread_ms(summary.first_token)} ms (p50 / p95)."
    )


if __name__ == "__main__":
    run(PROGRAM, main)
