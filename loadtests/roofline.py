"""`python -m loadtests.roofline`: a round's time against what its weights need of the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from rich.console import Console
from rich.progress import track

from loadtests.client import Client
from loadtests.command import INTERRUPTED, UntilInterrupted, run
from loadtests.document import Document
from loadtests.floor import Answered, Summary, summarize
from loadtests.peer import Peer
from loadtests.prompts import Prompt, load_prompts
from loadtests.result import Result
from loadtests.rounds import PARTS
from loadtests.settings import MeasuringSettings
from loadtests.tables import console, table, with_interval
from specwire.settings import setting

PROGRAM = "loadtests.roofline"


class RooflineSettings(MeasuringSettings):
    """Says where a round's time goes at concurrency 1, and how near memory's limit its forward is.

    The verifier's clock tells the parts of a round. What the target's weights take is their bytes
    by the bandwidth that torch measures on the same cores, before and after each request: on a
    machine that is shared it may change within seconds. The head runs in the time of drawing, so
    the forward is both together, and what of drawing is above the head's own bytes counts as
    drawing. Planning a step counts as forward. For forwards of 6 tokens start the stack with
    HOLDCOURSE_DRAFT_LENGTH=5 and HOLDCOURSE_LOOKUP=off.
    """

    target: str = setting(..., "The served model: Hugging Face id, folder or .gguf file.")
    limit: int = setting(8, "Prompts to take from the file.", ge=1)
    max_tokens: int = setting(96, "Tokens of each output.", ge=3)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)


async def main() -> int:
    """Run it; returns 130 if it was interrupted."""
    settings = RooflineSettings.read(PROGRAM)
    prompts = load_prompts(settings.prompts, settings.limit)
    answered: list[Answered] = []
    async with Client(settings.url, settings.api_key) as client:
        served = await client.served()
        document = Document(settings, served.card)
        async with Peer.running(settings.target, served.dtype) as peer:
            peer.check(settings.target, served)
            document.tell(reference=peer.facts)
            with UntilInterrupted() as block:
                async for one in _measure(settings, client, peer, prompts):
                    answered.append(one)
                    document.add(one)
            summary = summarize(answered, peer.facts["weights"])
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary)
    return INTERRUPTED if block.interrupted else 0


async def _measure(
    settings: RooflineSettings, client: Client, peer: Peer, prompts: Sequence[Prompt]
) -> AsyncIterator[Answered]:
    """Both modes in turns, after a warm-up of each."""

    async def ask(prompt: Prompt, speculation: bool) -> Result:
        return await client.chat(
            prompt.text,
            max_tokens=settings.max_tokens,
            speculation=speculation,
            ignore_eos=True,
        )

    for speculation in (False, True):
        await ask(prompts[0], speculation)
    for repeat in track(range(settings.repeats), "Repeats", console=Console(stderr=True)):
        before = await peer.bandwidth()
        for place, prompt in enumerate(prompts):
            for speculation in ((False, True), (True, False))[(repeat + place) % 2]:
                result = await ask(prompt, speculation)
                after = await peer.bandwidth()
                yield Answered(repeat, prompt.name, speculation, (before + after) / 2, result)
                before = after


def print_summary(console: Console, summary: Summary) -> None:
    """Print a table with a column for each mode."""
    modes = summary.modes
    names = ("speculation on" if mode.speculation else "speculation off" for mode in modes)
    made = table("Where a round's time goes at concurrency 1, ms", "", *names)
    made.add_row("tokens of a forward", *(f"{mode.tokens:.2f}" for mode in modes))
    for part, label in PARTS.items():
        made.add_row(label, *(f"{mode.parts_ms[part]:.2f}" for mode in modes))
    made.add_row("round", *(f"{sum(mode.parts_ms.values()):.2f}" for mode in modes))
    made.add_section()
    made.add_row("bytes of the layers", *(f"{mode.layers_ms:.2f}" for mode in modes))
    made.add_row("bytes of the head", *(f"{mode.head_ms:.2f}" for mode in modes))
    made.add_section()
    rows = {
        "target forward by bytes of the layers": [mode.target for mode in modes],
        "forward and drawing by all bytes": [mode.forward for mode in modes],
        "Python, drawing, queue and wire by the round": [mode.others for mode in modes],
    }
    for label, ratios in rows.items():
        made.add_row(label, *(with_interval(ratio) for ratio in ratios))
    made.caption = (
        "Bytes: the time that memory needs for them. Ratios: medians over prompts (95 % interval)."
    )
    console.print(made)
    least, middle, most = (f"{value / 1e9:.1f}" for value in summary.bandwidth)
    sizes = " and ".join(f"{size / 1e6:.0f} MB {name}" for name, size in summary.weights.items())
    console.print(f"Memory gave {middle} GB/s ({least} to {most}); weights: {sizes}.")


if __name__ == "__main__":
    run(PROGRAM, main)
