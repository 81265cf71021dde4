"""`python -m loadtests.roofline`: a round's time against what its weights need of the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import product
from typing import Annotated

from pydantic import BeforeValidator, Field
from rich.console import Console
from rich.progress import track

from loadtests.bench.report import drawn
from loadtests.common.client import Client
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.draft_stats import PARTS
from loadtests.common.prompts import Prompt, load_prompts
from loadtests.common.report_file import ReportFile
from loadtests.common.result import RequestFailed
from loadtests.common.settings import MeasuringSettings
from loadtests.common.tables import console, table, with_interval
from loadtests.peers.arms import PLAIN, SPECULATIVE, Arm, RestArm, Sampling, Task
from loadtests.peers.schedule import run_block, turns
from loadtests.peers.settings import split
from loadtests.peers.transformers_peer import TransformersPeer
from loadtests.roofline.model import Mode, Summary, Wave, rows_of, summarize
from specserve.settings import setting

PROGRAM = "loadtests.roofline"


class RooflineSettings(MeasuringSettings):
    """Says where a round's time goes, and how near memory's limit its forward is.

    The verifier's clock tells the parts of a round. What the target's weights take is their bytes
    by the bandwidth that torch measures on the same cores, before and after each wave of requests:
    on a machine that is shared it may change within seconds. The head runs in the time of drawing,
    so the forward is both together. Its product alone is measured after each wave, by the kernels
    that serve and with as many rows: what of drawing is above that counts as drawing. Planning a
    step counts as forward. For forwards of 6 tokens start the stack with HOLDCOURSE_DRAFT_LENGTH=5
    and HOLDCOURSE_LOOKUP=off.
    """

    target: str = setting(..., "The served model: Hugging Face id, folder or .gguf file.")
    limit: int = setting(16, "Prompts to take from the file.", ge=1)
    max_tokens: int = setting(96, "Tokens of each output.", ge=3)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)
    concurrency: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(split), Field(min_length=1)
    ] = setting("1,4,16", "Requests that begin together; several levels as 1,4,16.")
    temperature: Annotated[
        tuple[Annotated[float, Field(ge=0, le=2)], ...],
        BeforeValidator(split),
        Field(min_length=1),
    ] = setting("0,1", "Of the requests, in turns, 0 for greedy.")


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = RooflineSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts, settings.limit)
    waves: list[Wave] = []
    async with Client(settings.url, settings.api_key) as client:
        served = await client.served()
        document = ReportFile(settings, served.card)
        async with TransformersPeer.running(settings.target, served.dtype) as peer:
            peer.check(settings.target, served)
            document.tell(reference=peer.facts)
            with UntilInterrupted() as block:
                level = served.card.get("kernels")
                async for wave in _measure(settings, client, peer, prompts, level):
                    waves.append(wave)
                    document.add(wave)
            summary = summarize(waves, peer.facts["weights"])
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


async def _measure(
    settings: RooflineSettings,
    client: Client,
    peer: TransformersPeer,
    prompts: Sequence[Prompt],
    kernels: str | None,
) -> AsyncIterator[Wave]:
    """All modes in turns, after a warm-up of each; `kernels` is the level that serves.

    Raises:
        RequestFailed: a request did.
    """
    arms: list[Arm] = [RestArm(name, client, name == SPECULATIVE) for name in (PLAIN, SPECULATIVE)]
    samplings = [Sampling(settings.max_tokens, each) for each in settings.temperature]
    waves = {level: list(_waves(prompts, level)) for level in settings.concurrency}
    for (level, (first, *_)), arm, sampling in product(waves.items(), arms, samplings):
        await run_block(arm, first, sampling, level)
    for repeat in track(range(settings.repeats), "Repeats", console=Console(stderr=True)):
        before = await peer.bandwidth()
        for level, cut in waves.items():
            for place, arm, sampling in turns(arms, samplings, len(cut), repeat):
                done = await run_block(arm, cut[place], sampling, level, repeat, place)
                for error in (record.error for record in done.records if record.error):
                    raise RequestFailed(error)
                results = tuple(done.results)
                after = await peer.bandwidth()
                head = await peer.head(rows_of(results), kernels)
                mode = level, sampling.temperature, arm.name == SPECULATIVE
                yield Wave(*mode, repeat, place, (before + after) / 2, head, results)
                before = after


def _waves(prompts: Sequence[Prompt], level: int) -> Iterator[list[Task]]:
    """All prompts, so many at once, the last ones filled up from the first."""
    for start in range(0, len(prompts), level):
        places = [place % len(prompts) for place in range(start, start + level)]
        yield [Task(prompts[place], (), place) for place in places]


def print_summary(console: Console, summary: Summary) -> None:
    """Print a table for each concurrency, with a column for each mode."""
    for level in dict.fromkeys(mode.concurrency for mode in summary.modes):
        _print_level(console, [mode for mode in summary.modes if mode.concurrency == level])
    least, middle, most = (f"{value / 1e9:.1f}" for value in summary.bandwidth)
    sizes = " and ".join(f"{size / 1e6:.0f} MB {name}" for name, size in summary.weights.items())
    console.print(f"Memory gave {middle} GB/s ({least} to {most}); weights: {sizes}.")


def _print_level(console: Console, modes: Sequence[Mode]) -> None:
    names = (f"{'on' if mode.speculation else 'off'}, {drawn(mode.temperature)}" for mode in modes)
    title = f"Where a round's time goes at concurrency {modes[0].concurrency}, ms"
    made = table(title, "speculation", *names)
    made.add_row("tokens of a sequence in a forward", *(f"{mode.tokens:.2f}" for mode in modes))
    for part, label in PARTS.items():
        made.add_row(label, *(f"{mode.parts_ms[part]:.2f}" for mode in modes))
    made.add_row("round", *(f"{sum(mode.parts_ms.values()):.2f}" for mode in modes))
    made.add_section()
    made.add_row("product of the head alone", *(f"{mode.head_ms:.2f}" for mode in modes))
    made.add_row("bytes of the layers", *(f"{mode.layers_bytes_ms:.2f}" for mode in modes))
    made.add_row("bytes of the head", *(f"{mode.head_bytes_ms:.2f}" for mode in modes))
    made.add_section()
    rows = {
        "target forward by bytes of the layers": [mode.target for mode in modes],
        "forward and drawing by all bytes": [mode.forward for mode in modes],
        "drawing beyond the product by the round": [mode.drawing for mode in modes],
        "Python, that drawing, queue and wire by the round": [mode.others for mode in modes],
    }
    for label, ratios in rows.items():
        made.add_row(label, *(with_interval(ratio) for ratio in ratios))
    made.caption = (
        "Bytes: the time that memory needs for them. Ratios: medians over waves (95 % interval)."
    )
    console.print(made)


if __name__ == "__main__":
    run(PROGRAM, main)
