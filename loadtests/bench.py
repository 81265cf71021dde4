"""`python -m loadtests.bench`: speculation on and off through REST, beside other engines."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from loadtests.arms import Arm, Run, Sampling, Task, as_json, blocks, run_block, turns
from loadtests.bench_settings import BenchSettings
from loadtests.client import Client, Served
from loadtests.command import run
from loadtests.lineup import Lineup
from loadtests.prompts import Prompt, load_prompts
from loadtests.provenance import provenance
from loadtests.report import console, print_report
from loadtests.summary import Summary, summarize

PROGRAM = "loadtests.bench"


async def main() -> int:
    """Run the benchmark; returns 1 if a request failed."""
    settings = BenchSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts, settings.limit)
    origin = provenance()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(settings.url, settings.api_key))
        served = await client.served()
        tasks = await _tasks(client, prompts)
        sampling = Sampling(settings.max_tokens, settings.temperature)
        with Console(stderr=True).status("Starting"):
            lineup = await Lineup.start(stack, settings, client, served, sampling, tasks)
        runs = await _measure(settings, lineup.arms, tasks)
    summary = summarize(runs, greedy=settings.temperature == 0)
    print_report(console(), summary)
    if settings.output:
        _write(Path(settings.output), settings, origin, served, lineup, summary, runs)
    return 1 if summary.errors else 0


async def _tasks(client: Client, prompts: list[Prompt]) -> list[Task]:
    return [
        Task(prompt, tuple(await client.tokenize(prompt.text)), seed)
        for seed, prompt in enumerate(prompts)
    ]


async def _measure(settings: BenchSettings, arms: list[Arm], tasks: list[Task]) -> list[Run]:
    """Warm every arm up with the first prompts, then take turns."""
    cut = blocks(tasks, settings.concurrency)
    progress = Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    runs = []
    with progress:
        bar = progress.add_task("Warming up", total=len(cut) * len(arms) * settings.repeats)
        for arm in arms:
            await run_block(arm, cut[0][: settings.concurrency], settings.concurrency)
        for repeat, block, arm in turns(arms, len(cut), settings.repeats):
            progress.update(bar, description=arm.name)
            runs.append(await run_block(arm, cut[block], settings.concurrency, repeat, block))
            progress.advance(bar)
    return runs


def _write(
    path: Path,
    settings: BenchSettings,
    origin: dict[str, Any],
    served: Served,
    lineup: Lineup,
    summary: Summary,
    runs: list[Run],
) -> None:
    document = {
        "provenance": origin,
        "arguments": settings.model_dump(exclude={"api_key"}),
        "model": served.card,
        "peers": lineup.peers,
        "summary": asdict(summary),
        "runs": [as_json(run) for run in runs],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(PROGRAM, main)
