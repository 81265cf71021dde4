"""The parent's end of other engines: what all of them do, and transformers' own."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from loadtests.common.client import Served
from loadtests.common.result import Result
from loadtests.peers.json_child import Child
from specserve.settings import StartError


class Engine:
    """An engine in a process of its own, asked without HTTP."""

    # Requests that it takes at once; None for any number.
    most: int | None = None

    def __init__(self, child: Child) -> None:
        self._child = child

    @property
    def facts(self) -> Mapping[str, Any]:
        """What runs: versions and arguments."""
        return self._child.facts

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> Result:
        """Continue a prompt; times are the engine's, from its taking the request."""
        value = await self._ask(
            "generate",
            tokens=tokens,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            ignore_eos=ignore_eos,
        )
        return self._result(value)

    def _result(self, value: Mapping[str, Any]) -> Result:
        return Result(tuple(value["tokens"]), value["seconds"], value["finish_reason"])

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        return await self._child.ask(operation, **arguments)


class TransformersPeer(Engine):
    """A target loaded by transformers (`transformers_child`); one `generate` is one request."""

    most = 1

    def __init__(self, child: Child) -> None:
        super().__init__(child)
        self.fingerprint: str = child.facts["fingerprint"]

    @classmethod
    @asynccontextmanager
    async def running(
        cls, target: str, dtype: str, environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[TransformersPeer]:
        """Load `target`, in this process's environment or another; it ends with the block.

        Raises:
            StartError: it cannot be loaded.
        """
        command = (sys.executable, "-m", "loadtests.peers.transformers_child", target, dtype)
        async with Child.running("transformers", command, environment) as child:
            yield cls(child)

    def check(self, target: str, served: Served) -> None:
        """Make sure that it is the model that is served.

        Raises:
            StartError: other weights.
        """
        if self.fingerprint != served.fingerprint:
            raise StartError(f"{target} is not the model that is served, {served.name}.")

    async def score(
        self, prompt: Sequence[int], output: Sequence[int], stopped: bool
    ) -> list[float]:
        """Run prompt and output through the target at once.

        Returns for each output token how far its logit is below the best one; where the output
        stopped, also for the best end token after it.
        """
        tokens = [*prompt, *output]
        gaps: list[float] = await self._ask(
            "score", tokens=tokens, start=len(prompt), stopped=stopped
        )
        return gaps

    async def noise(self, prompt: Sequence[int], output: Sequence[int]) -> float:
        """Largest change of a top-two gap between cached decoding and one forward, in logits."""
        tokens = [*prompt, *output]
        largest: float = await self._ask("noise", tokens=tokens, start=len(prompt))
        return largest

    async def bandwidth(self) -> float:
        """Measure what the memory of its device gives, in bytes per second."""
        measured: float = await self._ask("bandwidth")
        return measured

    async def head(self, rows: int, level: str | None) -> float:
        """Measure the product of its head with so many rows, by kernels of a level, in seconds."""
        measured: float = await self._ask("head", rows=rows, level=level)
        return measured

    async def save(self, target: str, folder: str) -> None:
        """Write the model, and the tokenizer of `target`, as a folder of Hugging Face's layout."""
        await self._ask("save", target=target, folder=folder)
