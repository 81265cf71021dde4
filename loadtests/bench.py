"""`python -m loadtests.bench`: speculation on and off through REST, beside transformers."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from loadtests.arms import (
    Arm,
    PeerArm,
    RestArm,
    Run,
    Sampling,
    Task,
    as_json,
    blocks,
    run_block,
    turns,
)
from loadtests.client import Client, Served
from loadtests.command import run
from loadtests.peer import Peer
from loadtests.prompts import Prompt, load_prompts
from loadtests.provenance import provenance
from loadtests.report import console, print_report
from loadtests.summary import Summary, summarize
from specwire.settings import Settings, setting

PROGRAM = "loadtests.bench"


class BenchSettings(Settings):
    """Measures a running stack: the same prompts with speculation on and off, in turns.

    With a peer target, transformers' `generate` takes turns too, in a process of its own, in the
    dtype that is served. End tokens end no output, in no arm: all outputs have one length.
    """

    prompts: str = setting(..., "File of JSON lines; the first of each line's `turns` is asked.")
    url: str = setting("http://127.0.0.1:8000", "The gateway.")
    api_key: str | None = setting(None, "Key for the gateway.")
    limit: int | None = setting(None, "Prompts to take from the file; none takes all.", ge=1)
    max_tokens: int = setting(128, "Tokens of each output.", ge=2)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)
    concurrency: int = setting(1, "Requests at once, as a closed loop.", ge=1)
    temperature: float = setting(0.0, "Of every arm; seeds are fixed by prompt.", ge=0, le=2)
    peer_target: str | None = setting(
        None, "The served model as transformers loads it: Hugging Face id, folder or .gguf file."
    )
    output: str | None = setting(None, "File for all numbers as JSON, every request included.")

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str | None) -> str | None:
        if output and not Path(output).absolute().parent.is_dir():
            raise ValueError("must be in a folder that exists")
        return output

    @model_validator(mode="after")
    def _check_peer(self) -> BenchSettings:
        if self.peer_target and self.concurrency > 1:
            raise ValueError(
                "--peer-target: one `generate` serves one request; use --concurrency 1"
            )
        return self


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
        arms: list[Arm] = [RestArm(client, sampling, False), RestArm(client, sampling, True)]
        if settings.peer_target:
            peer = await stack.enter_async_context(Peer.running(settings.peer_target, served.dtype))
            peer.check(settings.peer_target, served)
            arms.append(PeerArm(peer, sampling))
        runs = await _measure(settings, arms, tasks)
    summary = summarize(runs, greedy=settings.temperature == 0)
    print_report(console(), summary)
    if settings.output:
        _write(Path(settings.output), settings, origin, served, summary, runs)
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
    summary: Summary,
    runs: list[Run],
) -> None:
    document = {
        "provenance": origin,
        "arguments": settings.model_dump(exclude={"api_key"}),
        "model": served.card,
        "summary": asdict(summary),
        "runs": [as_json(run) for run in runs],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(PROGRAM, main)
