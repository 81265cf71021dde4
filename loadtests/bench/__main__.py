"""`python -m loadtests.bench`: speculation on and off through REST, beside other engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import product

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from loadtests.bench.report import print_report
from loadtests.bench.settings import BenchSettings
from loadtests.bench.summary import summarize
from loadtests.common.client import Client
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.prompts import Prompt, load_prompts
from loadtests.common.report_file import ReportFile
from loadtests.common.tables import console
from loadtests.peers.arms import Arm, Task
from loadtests.peers.schedule import Run, blocks, run_block, turns
from loadtests.peers.start_arms import StartedArms, other_stacks

PROGRAM = "loadtests.bench"


async def main() -> int:
    """Run the benchmark; returns 1 if a request failed, and 130 if it was interrupted."""
    settings = BenchSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts, settings.limit)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(settings.url, settings.api_key))
        served = await client.served()
        document = ReportFile(settings, served.card)
        tasks = await _tasks(client, prompts)
        with Console(stderr=True).status("Starting"):
            # Before the engines, whose start takes long.
            others = await other_stacks(stack, settings.also, settings.api_key, served)
            lineup = await StartedArms.start(
                stack,
                settings,
                client,
                served,
                sequences=max(settings.concurrency),
                longest=max(len(task.tokens) for task in tasks) + settings.max_tokens,
            )
        document.tell(peers=lineup.peers)
        runs: list[Run] = []
        with UntilInterrupted() as block:
            async for measured in _measure(settings, [*lineup.arms, *others], tasks):
                runs.append(measured)
                document.add(measured)
        summary = summarize(runs)
        document.finish(summary, complete=not block.interrupted)
        print_report(console(), summary)
    return INTERRUPTED if block.interrupted else 1 if summary.errors else 0


async def _tasks(client: Client, prompts: list[Prompt]) -> list[Task]:
    return [
        Task(prompt, tuple(await client.tokenize(prompt.text)), seed)
        for seed, prompt in enumerate(prompts)
    ]


async def _measure(
    settings: BenchSettings, arms: list[Arm], tasks: list[Task]
) -> AsyncIterator[Run]:
    """Level after level, and all of them again in each repeat.

    Before its first block at a level every arm is warmed up with as many prompts as it will have
    requests at once, at each temperature.
    """
    samplings = settings.samplings
    levels = {}
    for level in settings.concurrency:
        if taking := [arm for arm in arms if arm.most is None or level <= arm.most]:
            levels[level] = taking, blocks(tasks, level, settings.blocks)
    pairs = sum(len(taking) * len(cut) for taking, cut in levels.values())
    total = settings.repeats * pairs * len(samplings)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total)
        for repeat in range(settings.repeats):
            for level, (taking, cut) in levels.items():
                for arm, sampling in product(taking, samplings) if repeat == 0 else ():
                    progress.update(bar, description=f"{level} at once, warming up {arm.name}")
                    await run_block(arm, cut[0][:level], sampling, level)
                for block, arm, sampling in turns(taking, samplings, len(cut), repeat):
                    progress.update(bar, description=f"{level} at once, {arm.name}")
                    yield await run_block(arm, cut[block], sampling, level, repeat, block)
                    progress.advance(bar)


if __name__ == "__main__":
    run(PROGRAM, main)
