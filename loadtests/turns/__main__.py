"""`python -m loadtests.turns`: what a second turn gains from the first one's cached history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track

from loadtests.common.client import Client
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.compare import equal
from loadtests.common.draft_stats import RoundStats
from loadtests.common.long_prompts import passages
from loadtests.common.prompts import load_prompts
from loadtests.common.report_file import ReportFile
from loadtests.common.result import Result
from loadtests.common.settings import MeasuringSettings
from loadtests.common.stats import Key, Ratio, Spread, paired_ratio
from loadtests.common.tables import console, spread_ms, table, with_interval
from loadtests.turns.conversation import Conversation, converse
from specserve.settings import setting

PROGRAM = "loadtests.turns"


class TurnsSettings(MeasuringSettings):
    """Compares the second turn of a conversation with the same request to an empty cache.

    The first turn is a text cut out of the prompts, and its answer. The second turn is asked
    twice: with the first one's `cache_salt`, which finds the history cached, and with a fresh
    one, the cold request. All of it with speculation off and on.
    """

    history: int = setting(2000, "Tokens of the first turn, answer included, about.", ge=32)
    max_tokens: int = setting(64, "Tokens of each output.", ge=2)
    pairs: int = setting(6, "Different histories.", ge=1)


@dataclass(frozen=True, slots=True)
class ModeSummary:
    """All conversations with speculation on, or off. Times are in seconds."""

    speculation: bool
    prompt_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    second: Spread
    cold: Spread
    first_token: Ratio | None  # second turn by cold
    equal: int
    drafts: tuple[tuple[int, int], ...]  # accepted and rejected, of the second turn and cold
    acceptance_length: Ratio | None  # second turn by cold


@dataclass(frozen=True, slots=True)
class Summary:
    """Both modes, and in how many pairs both found the same part of the prompt cached."""

    modes: tuple[ModeSummary, ...]
    pairs: int
    equal_hits: int


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = TurnsSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts)
    conversations: list[Conversation] = []
    async with Client(settings.url, settings.api_key) as client:
        document = ReportFile(settings, (await client.served()).card)
        length = settings.history - settings.max_tokens
        texts = await passages(client, prompts, max(1, length), settings.pairs)
        with UntilInterrupted() as block:
            async for conversation in _converse(client, settings, texts):
                conversations.append(conversation)
                document.add(conversation)
    summary = summarize(conversations)
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


async def _converse(
    client: Client, settings: TurnsSettings, texts: Sequence[str]
) -> AsyncIterator[Conversation]:
    """Every pair in both modes, in turns, after a warm-up of both."""
    order = [(pair, on) for pair in range(len(texts)) for on in (pair % 2 == 1, pair % 2 == 0)]

    async def one(pair: int, on: bool) -> Conversation:
        return await converse(
            client, texts[pair], pair, max_tokens=settings.max_tokens, speculation=on
        )

    for on in (False, True):
        await one(0, on)
    for pair, on in track(order, "Conversations", console=Console(stderr=True)):
        yield await one(pair, on)


def summarize(conversations: Sequence[Conversation]) -> Summary:
    """Sum up; ratios are paired by conversation."""
    modes = [[c for c in conversations if c.speculation is on] for on in (False, True)]
    hits = [{c.pair: c.second.cached_tokens for c in mode} for mode in modes]
    shared = hits[0].keys() & hits[1].keys()
    return Summary(
        tuple(_mode(mode) for mode in modes if mode),
        len(shared),
        sum(hits[0][pair] == hits[1][pair] for pair in shared),
    )


def _mode(conversations: Sequence[Conversation]) -> ModeSummary:
    second = {(0, c.pair): c.second for c in conversations}
    cold = {(0, c.pair): c.cold for c in conversations}
    return ModeSummary(
        conversations[0].speculation,
        tuple(result.prompt_tokens for result in second.values()),
        tuple(result.cached_tokens for result in second.values()),
        Spread.of([result.first_token for result in second.values()]),
        Spread.of([result.first_token for result in cold.values()]),
        paired_ratio(_first_tokens(second), _first_tokens(cold)),
        sum(equal(c.second, c.cold) for c in conversations),
        (_drafts(list(second.values())), _drafts(list(cold.values()))),
        paired_ratio(_lengths(second), _lengths(cold)),
    )


def _first_tokens(results: dict[Key, Result]) -> dict[Key, float]:
    return {key: first for key, result in results.items() if (first := result.first_token)}


def _lengths(results: dict[Key, Result]) -> dict[Key, float]:
    rounds = {key: RoundStats.of([result]) for key, result in results.items()}
    return {key: each.acceptance_length for key, each in rounds.items() if each is not None}


def _drafts(results: Sequence[Result]) -> tuple[int, int]:
    """Accepted and rejected draft tokens."""
    accepted, proposed = (
        sum(sum(result.report[name]) for result in results)
        for name in ("accepted_at", "proposed_at")
    )
    return accepted, proposed - accepted


def print_summary(console: Console, summary: Summary) -> None:
    """Print a table with a column for each mode."""
    modes = summary.modes
    names = ("speculation on" if mode.speculation else "speculation off" for mode in modes)
    made = table("Second turn against the same request to an empty cache", "", *names)
    rows = {
        "conversations": [str(len(mode.prompt_tokens)) for mode in modes],
        "prompt tokens": [f"{min(m.prompt_tokens)} .. {max(m.prompt_tokens)}" for m in modes],
        "cached of these": [f"{sum(m.cached_tokens) / sum(m.prompt_tokens):.1%}" for m in modes],
        "TTFT of the second turn, ms p50 / p95": [spread_ms(mode.second) for mode in modes],
        "TTFT cold, ms p50 / p95": [spread_ms(mode.cold) for mode in modes],
        "TTFT, second by cold": [with_interval(mode.first_token) for mode in modes],
        "equal texts": [f"{mode.equal} of {len(mode.prompt_tokens)}" for mode in modes],
        "draft tokens accepted / rejected, second": [_both(mode.drafts[0]) for mode in modes],
        "draft tokens accepted / rejected, cold": [_both(mode.drafts[1]) for mode in modes],
        "acceptance length, second by cold": [with_interval(m.acceptance_length) for m in modes],
    }
    for name, cells in rows.items():
        made.add_row(name, *cells)
    made.caption = "Ratios: medians of pairs (95 % interval)."
    console.print(made)
    console.print(
        f"The same tokens were cached with speculation and without in {summary.equal_hits} of "
        f"{summary.pairs} pairs."
    )


def _both(drafts: tuple[int, int]) -> str:
    return f"{drafts[0]} / {drafts[1]}"


if __name__ == "__main__":
    run(PROGRAM, main)
