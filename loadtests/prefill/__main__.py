"""`python -m loadtests.prefill`: time to the first token of long prompts, beside other engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated

from pydantic import BeforeValidator, Field
from rich.console import Console
from rich.progress import track

from loadtests.bench.report import ratio_table
from loadtests.common.client import Client
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.long_prompts import passages
from loadtests.common.prompts import Prompt, load_prompts
from loadtests.common.report_file import ReportFile
from loadtests.common.tables import console, number, spread_ms, table, with_interval
from loadtests.peers.arms import Sampling, Task
from loadtests.peers.schedule import turns
from loadtests.peers.settings import PeerSettings, split
from loadtests.peers.start_arms import StartedArms
from loadtests.prefill.summary import Answered, Size, Summary, summarize
from specserve.settings import setting

PROGRAM = "loadtests.prefill"
FIRST_TOKEN = Sampling(max_tokens=1, temperature=0.0)


class PrefillSettings(PeerSettings):
    """Measures how long cold prompts take to their first token, in every arm, in turns.

    The prompts are texts cut out of those of the file, each at another place, so that nobody finds
    cached what was asked before; ours are asked through REST, peers without HTTP. Speed is prompt
    tokens by the time to the first token.
    """

    tokens: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(split), Field(min_length=1)
    ] = setting("900,3500", "Tokens of a prompt, about; several sizes as 900,3500.")
    repeats: int = setting(6, "Prompts of each size.", ge=1)


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = PrefillSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts)
    answered: list[Answered] = []
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(settings.url, settings.api_key))
        served = await client.served()
        document = ReportFile(settings, served.card)
        tasks = {size: await _tasks(client, prompts, size, settings) for size in settings.tokens}
        longest = max(len(task.tokens) for of_size in tasks.values() for task in of_size)
        with Console(stderr=True).status("Starting"):
            lineup = await StartedArms.start(
                stack, settings, client, served, sequences=1, longest=longest + 1
            )
        document.tell(peers=lineup.peers)
        with UntilInterrupted() as block:
            async for one in _measure(lineup, tasks):
                answered.append(one)
                document.add(one)
    summary = summarize(answered)
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


async def _tasks(
    client: Client, prompts: Sequence[Prompt], size: int, settings: PrefillSettings
) -> list[Task]:
    """One to warm up, and one for each repeat."""
    texts = await passages(client, prompts, size, 1 + settings.repeats)
    return [
        Task(Prompt(f"{size}/{place}", (text,)), tuple(await client.tokenize(text)), place)
        for place, text in enumerate(texts)
    ]


async def _measure(
    lineup: StartedArms, tasks: Mapping[int, Sequence[Task]]
) -> AsyncIterator[Answered]:
    """All arms in turns, prompt after prompt, after a warm-up of each at each size."""
    for arm in lineup.arms:
        for first, *_ in tasks.values():
            await arm.answer(first, FIRST_TOKEN)
    count = max(len(of_size) for of_size in tasks.values()) - 1
    for repeat in track(range(count), "Prompts", console=Console(stderr=True)):
        for size, (_, *measured) in tasks.items():
            task = measured[repeat]
            for _, arm, sampling in turns(lineup.arms, [FIRST_TOKEN], 1, repeat):
                result = await arm.answer(task, sampling)
                seconds = result.first_token or result.seconds
                yield Answered(size, repeat, arm.name, len(task.tokens), seconds)


def print_summary(console: Console, summary: Summary) -> None:
    """Print two tables for each size."""
    for size in summary.sizes:
        console.rule(f"prompts of about {size.tokens} tokens", align="left")
        _print_size(console, size)


def _print_size(console: Console, size: Size) -> None:
    made = table("Prefill", "arm", "prompts", "tokens", "TTFT ms", "tok/s")
    made.caption = "p50 / p95; tok/s: prompt tokens by the time to the first token, at the median."
    for arm in size.arms:
        tokens = f"{min(arm.prompt_tokens)} to {max(arm.prompt_tokens)}"
        speed = number(arm.tokens_per_second, 0)
        made.add_row(
            arm.name, str(len(arm.prompt_tokens)), tokens, spread_ms(arm.first_token), speed
        )
    console.print(made)
    if size.speeds:
        caption = "Median of pairs by prompt (95 % interval)."
        console.print(ratio_table("Speed, row by column", size.speeds, caption))
    for name, against in size.against_best.items():
        ratio = with_interval(against)
        console.print(f"{name} against {size.best}, the fastest of the others: {ratio}")


if __name__ == "__main__":
    run(PROGRAM, main)
