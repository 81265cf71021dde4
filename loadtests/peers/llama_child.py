"""llama.cpp as a child process that speaks JSON lines (`loadtests.peers.json_child`).

    PYTHON llama_child.py '{"model_path": ..., ...}'

PYTHON is one that has llama-cpp-python; of this project it sees this file alone. The argument holds
what `Llama` takes. One request is served at a time; between two it sleeps in a read.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

PACKAGE = "llama-cpp-python"
# What llama.cpp reads of the environment.
PREFIXES = ("OMP_", "GOMP_", "GGML_", "LD_PRELOAD")
# No sampler but temperature: what a request to an API without further parameters asks for.
ALL_TOKENS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}

Answer = dict[str, Any]


class Engine:
    """A model of llama.cpp."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._library: Any = importlib.import_module("llama_cpp")
        self._model: Any = self._library.Llama(**arguments)
        self._arguments = arguments

    @property
    def facts(self) -> Answer:
        """What runs: versions, arguments, and the instructions that it was built for."""
        return {
            "versions": {
                "python": platform.python_version(),
                PACKAGE: importlib.metadata.version(PACKAGE),
            },
            "arguments": self._arguments,
            "environment": {n: v for n, v in os.environ.items() if n.startswith(PREFIXES)},
            "system": self._library.llama_print_system_info().decode(),
        }

    def generate(
        self,
        *,
        tokens: list[int],
        max_tokens: int,
        temperature: float,
        seed: int,
        ignore_eos: bool,
    ) -> Answer:
        """Continue a prompt; times are in seconds since this call."""
        began = time.perf_counter()
        self._model.reset()  # nothing of an earlier prompt is found again
        self._model.set_seed(seed)
        new: list[int] = []
        chunks: list[tuple[float, int]] = []
        reason = "length"
        for token in self._drawn(tokens, temperature):
            if not ignore_eos and token == self._model.token_eos():
                reason = "stop"
                break
            new.append(token)
            chunks.append((time.perf_counter() - began, 1))
            if len(new) == max_tokens:
                break
        seconds = time.perf_counter() - began
        return {"tokens": new, "seconds": seconds, "finish_reason": reason, "chunks": chunks}

    def _drawn(self, tokens: list[int], temperature: float) -> Iterator[int]:
        """Tokens without an end; temperature 0 takes the most likely ones."""
        drawn: Iterator[int] = self._model.generate(tokens, temp=temperature, **ALL_TOKENS)
        return drawn


def serve(engine: Engine, answers: TextIO) -> None:
    """Answer request after request until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        number, operation = request.pop("id"), request.pop("operation")
        try:
            answer = {"id": number, "value": getattr(engine, operation)(**request)}
        except Exception as error:  # llama.cpp's word on this one request
            answer = {"id": number, "error": first_line(error)}
        send(answers, answer)


def send(answers: TextIO, message: Answer) -> None:
    """Write one line."""
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def main() -> None:
    """Load, say so, serve."""
    arguments = json.loads(sys.argv[1])
    # What libraries print must not get between the answers.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        try:
            engine = Engine(arguments)
        except ImportError as error:
            why = f"{sys.executable} cannot import llama_cpp: {first_line(error)}."
            send(answers, {"id": 0, "error": why})
            return
        except Exception as error:  # a file that llama.cpp refuses, memory that it lacks
            send(answers, {"id": 0, "error": first_line(error)})
            return
        send(answers, {"id": 0, "value": engine.facts})
        serve(engine, answers)


if __name__ == "__main__":
    main()
