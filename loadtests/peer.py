"""The parent's end of a transformers process (`loadtests.reference`)."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

from loadtests.client import Served
from loadtests.result import Result
from specwire.settings import StartError

LONGEST_LINE = 1 << 24  # bytes


class Peer:
    """A target loaded by transformers in a process of its own, idle unless it is asked."""

    def __init__(self, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self.fingerprint = ""

    @classmethod
    @asynccontextmanager
    async def running(cls, target: str, dtype: str) -> AsyncGenerator[Peer]:
        """Load `target`; the process ends with the block.

        Raises:
            StartError: it cannot be loaded.
        """
        with tempfile.TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadtests.reference", target, dtype),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LONGEST_LINE,
            )
            try:
                peer = cls(process, log)
                ready = await peer._receive()
                if "error" in ready:
                    raise StartError(f"{target} cannot be loaded: {ready['error']}")
                peer.fingerprint = ready["fingerprint"]
                yield peer
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    def check(self, target: str, served: Served) -> None:
        """Make sure that it is the model that is served.

        Raises:
            StartError: other weights.
        """
        if self.fingerprint != served.fingerprint:
            raise StartError(f"{target} is not the model that is served, {served.name}.")

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> Result:
        """Continue a prompt; the seconds are those of `generate` alone."""
        value = await self._ask(
            "generate",
            tokens=tokens,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            ignore_eos=ignore_eos,
        )
        return Result(tuple(value["tokens"]), value["seconds"], value["finish_reason"])

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

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"operation": operation, **arguments}).encode())
        self._process.stdin.write(b"\n")
        return (await self._receive())["value"]

    async def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            status = await self._process.wait()
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise StartError(": ".join([f"The transformers process ended ({status})", *last]))
        message: dict[str, Any] = json.loads(line)
        return message
