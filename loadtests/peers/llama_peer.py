"""The parent's end of a llama.cpp process (`loadtests/peers/llama_child.py`)."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.common.result import Result
from loadtests.peers.environment import foreign
from loadtests.peers.json_child import Child
from loadtests.peers.transformers_peer import Engine
from specserve.model_source import ModelSource
from specserve.settings import StartError

CHILD = Path(__file__).with_name("llama_child.py")


def model_arguments(target: str, *, longest: int) -> dict[str, Any]:
    """Build what of `Llama` is not its default: the very file, and all cores.

    `longest` is that of prompt and output together, in tokens.

    Raises:
        StartError: the target is no GGUF file.
    """
    try:
        file = ModelSource.parse(target).file
    except ValueError as error:
        raise StartError(f"--peer-target: {error}") from None
    if file is None:
        raise StartError(f"--peer-target: {target} is not a .gguf file, which --arms llama needs.")
    cores = len(os.sched_getaffinity(0))
    return {
        "model_path": str(file),
        "n_ctx": longest,
        "n_threads": cores,
        "n_threads_batch": cores,
        "verbose": False,
    }


class LlamaPeer(Engine):
    """llama.cpp by its Python binding, which serves one request at a time."""

    most = 1

    @classmethod
    @asynccontextmanager
    async def running(
        cls, name: str, python: str, arguments: Mapping[str, Any], given: Mapping[str, str]
    ) -> AsyncGenerator[LlamaPeer]:
        """Start it by the Python that has it, in the environment `given`; it ends with the block.

        Raises:
            StartError: no such Python, no llama.cpp in it, or it refuses.
        """
        command = (python, str(CHILD), json.dumps(arguments))
        async with Child.running(name, command, foreign(given)) as child:
            yield cls(child)

    def _result(self, value: Mapping[str, Any]) -> Result:
        chunks = tuple((at, count) for at, count in value["chunks"])
        return replace(super()._result(value), chunks=chunks)
