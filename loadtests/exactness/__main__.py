"""`python -m loadtests.exactness`: served greedy text equals that of transformers' `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID

from loadtests.common.client import Client, Served
from loadtests.common.command import run
from loadtests.common.compare import NEAR_TIE
from loadtests.common.prompts import load_prompts
from loadtests.common.result import Result
from loadtests.common.tables import console
from loadtests.exactness.kill_drafter import Kill, read_pid
from loadtests.exactness.modes import KILLED, MODES, Ask, Case, Mode, Output, ask_server
from loadtests.exactness.verdict import Verdict
from loadtests.peers.transformers_peer import TransformersPeer
from specserve.settings import Settings, setting

PROGRAM = "loadtests.exactness"
KILL_AFTER = 32  # tokens


class ExactnessSettings(Settings):
    """Compares a running stack with transformers in the same dtype, token by token.

    Speculation off, draft lengths 1, 3, 5 and 8, 8 requests at once and, where its process id is
    given, the drafter killed in mid-generation. Start the stack with HOLDCOURSE_DRAFT_LENGTH=8 and
    HOLDCOURSE_DTYPE=float32, where near-ties must be rare. In another dtype a near-tie is what
    transformers' own logits cannot tell apart, which is measured on its own outputs.
    """

    prompts: str = setting(..., "File of JSON lines; the first of each line's `turns` is asked.")
    target: str = setting(..., "The served model: Hugging Face id, folder or .gguf file.")
    url: str = setting("http://127.0.0.1:8000", "The gateway.")
    api_key: str | None = setting(None, "Key for the gateway.")
    limit: int = setting(20, "Prompts to take from the file.", ge=1)
    max_tokens: int = setting(128, "Tokens of each output at most.", ge=1)
    kill_drafter: str | None = setting(
        None, "Process id of the drafter, or a file with it; it is killed and must be restarted."
    )
    kill_max_tokens: int = setting(
        1024, "Tokens of the generation in which the drafter dies and returns.", gt=KILL_AFTER
    )


class Check:
    """One run of the command."""

    def __init__(self, settings: ExactnessSettings, client: Client, progress: Progress) -> None:
        self._settings = settings
        self._client = client
        self._progress = progress

    async def run(self) -> Verdict:
        """Make references, serve, compare.

        Raises:
            StartError: the stack or the target is not what is needed.
        """
        settings = self._settings
        prompts = load_prompts(settings.prompts, settings.limit)
        pid = read_pid(settings.kill_drafter) if settings.kill_drafter else None
        served = await self._client.served()
        asks = [
            Ask(prompt, await self._client.tokenize(prompt.text), settings.max_tokens)
            for prompt in prompts
        ]
        long = replace(asks[0], max_tokens=settings.kill_max_tokens, ignore_eos=True)
        cases = await self._references(served, asks if pid is None else [*asks, long])
        outputs = []
        for mode in MODES:
            outputs += await self._serve(mode, cases[: len(asks)])
        verdict = Verdict()
        if pid is not None:
            outputs.append(await self._kill(pid, cases[-1], verdict))
        noise = await self._score(served, outputs)
        verdict.take(outputs, served.dtype, noise)
        return verdict

    async def _references(self, served: Served, asks: Sequence[Ask]) -> list[Case]:
        """What transformers writes, from a process that has ended afterwards."""
        async with self._peer(served) as peer:
            bar = self._bar("transformers", len(asks))
            cases = []
            for ask in asks:
                reference = await peer.generate(
                    ask.tokens, max_tokens=ask.max_tokens, ignore_eos=ask.ignore_eos
                )
                cases.append(Case(ask, reference))
                self._progress.advance(bar)
        return cases

    async def _serve(self, mode: Mode, cases: Sequence[Case]) -> list[Output]:
        """All cases in one mode."""
        bar = self._bar(mode.name, len(cases))
        free = asyncio.Semaphore(mode.concurrency)

        async def one(case: Case) -> Output:
            async with free:
                answer = await ask_server(self._client, case.ask, mode.speculation)
            self._progress.advance(bar)
            return Output(mode, case, answer)

        return await asyncio.gather(*(one(case) for case in cases))

    async def _kill(self, pid: int, case: Case, verdict: Verdict) -> Output:
        """One long generation, in the middle of which the drafter dies."""
        bar = self._bar(KILLED.name, case.ask.max_tokens)
        kill = Kill(pid, KILL_AFTER)

        def on_tokens(count: int) -> None:
            self._progress.update(bar, completed=count)
            kill(count)

        answer = await ask_server(self._client, case.ask, KILLED.speculation, on_tokens)
        if isinstance(answer, Result):
            verdict.take_kill(kill, answer)
        return Output(KILLED, case, answer)

    async def _score(self, served: Served, outputs: Sequence[Output]) -> float:
        """Find out how near the tokens were where an output differs from its reference.

        Returns the gap, in logits, under which they count as a near-tie.
        """
        different = [output for output in outputs if output.differs]
        limit = NEAR_TIE
        if not different:
            return limit
        async with self._peer(served) as peer:
            if served.dtype != "float32":
                limit = await self._noise(peer, {id(o.case): o.case for o in outputs}.values())
            bar = self._bar("scoring", len(different))
            for output in different:
                await output.score(peer, limit)
                self._progress.advance(bar)
        return limit

    async def _noise(self, peer: TransformersPeer, cases: Collection[Case]) -> float:
        """Measure transformers' logit noise on its own outputs."""
        bar = self._bar("noise", len(cases))
        largest = 0.0
        for case in cases:
            largest = max(largest, await peer.noise(case.ask.tokens, case.reference.tokens))
            self._progress.advance(bar)
        return largest

    @asynccontextmanager
    async def _peer(self, served: Served) -> AsyncGenerator[TransformersPeer]:
        target = self._settings.target
        async with TransformersPeer.running(target, served.dtype) as peer:
            peer.check(target, served)
            yield peer

    def _bar(self, name: str, total: int) -> TaskID:
        return self._progress.add_task(name, total=total)


async def main() -> int:
    """Run the check; returns 1 if it is not passed."""
    settings = ExactnessSettings.read(PROGRAM)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    async with Client(settings.url, settings.api_key) as client:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            verdict = await Check(settings, client, progress).run()
    verdict.print(console())
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    run(PROGRAM, main)
