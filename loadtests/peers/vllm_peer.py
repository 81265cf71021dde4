"""The parent's end of a vLLM process (`vllm_child.py`), in an environment of its own."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.common.client import Served
from loadtests.common.result import Result
from loadtests.peers.environment import foreign
from loadtests.peers.json_child import Child
from loadtests.peers.transformers_peer import Engine
from specserve.settings import StartError

CHILD = Path(__file__).with_name("vllm_child.py")


@dataclass(frozen=True, slots=True)
class Drafter:
    """A checkpoint for vLLM's method `eagle3`, and how many tokens it drafts each time."""

    checkpoint: str
    draft_length: int

    def check(self, served: Served) -> None:
        """Make sure that it is a checkpoint, and one of ours only for the target that is served.

        Raises:
            StartError: it is not.
        """
        try:
            config = json.loads((Path(self.checkpoint) / "config.json").read_text())
            target = config.get("holdcourse", {}).get("target_fingerprint", served.fingerprint)
        except (OSError, ValueError, AttributeError):
            raise StartError(
                f"--vllm-checkpoint: {self.checkpoint} has no config.json that can be read."
            ) from None
        if target != served.fingerprint:
            raise StartError(
                f"--vllm-checkpoint: {self.checkpoint} was made for another target than "
                f"{served.name}, which is served."
            )


def engine_arguments(
    model: str, dtype: str, *, sequences: int, longest: int, eager: bool, drafter: Drafter | None
) -> dict[str, Any]:
    """Build what of `EngineArgs` is not vLLM's default.

    `longest` is that of prompt and output together, in tokens.
    """
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "max_num_seqs": sequences,
        "max_model_len": longest,
        "enforce_eager": eager,
        # Nor is anything of an earlier turn reused by the other arms.
        "enable_prefix_caching": False,
    }
    if drafter is not None:
        # vLLM stops drafting where a whole draft would not fit.
        arguments["max_model_len"] += drafter.draft_length + 1
        arguments["speculative_config"] = {
            "method": "eagle3",
            "model": drafter.checkpoint,
            "num_speculative_tokens": drafter.draft_length,
        }
        arguments["per_request_spec_decode_metrics"] = "detailed"
    return arguments


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: `given` without our packages, and all cores for vLLM on a CPU."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    defaults = {
        # vLLM would keep a core for its front end; with so few of them that is half of all.
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",  # whatever is needed has been loaded here before
    }
    if "ONEDNN_MAX_CPU_ISA" in given:
        # What is held back in the child would not be in a process that it starts.
        defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return defaults | foreign(given)


class VllmPeer(Engine):
    """vLLM's engine; it takes requests into its batch as they come."""

    @classmethod
    @asynccontextmanager
    async def running(
        cls, name: str, python: str, arguments: Mapping[str, Any], given: Mapping[str, str]
    ) -> AsyncGenerator[VllmPeer]:
        """Start vLLM by the Python that has it, in the environment `given` and what it needs.

        Its processes end with the block.

        Raises:
            StartError: no such Python, no vLLM in it, or it refuses.
        """
        command = (python, str(CHILD), json.dumps(arguments))
        async with Child.running(name, command, environment(given)) as child:
            yield cls(child)

    def _result(self, value: Mapping[str, Any]) -> Result:
        chunks = tuple((at, count) for at, count in value["chunks"])
        report = draft_report(len(chunks), value["drafted"], value["accepted"])
        return replace(super()._result(value), chunks=chunks, report=report)


def draft_report(rounds: int, drafted: Sequence[int], accepted: Sequence[int]) -> dict[str, Any]:
    """Put drafted and accepted tokens by step of vLLM in the words of a `holdcourse` object."""
    return {
        "rounds": rounds,
        "drafted_rounds": sum(count > 0 for count in drafted),
        "proposed_at": _at_least(drafted, drafted),
        "accepted_at": _at_least(accepted, drafted),
        "lookup_proposed_at": [],
        "lookup_accepted_at": [],
        "failovers": 0,
    }


def _at_least(counts: Sequence[int], drafted: Sequence[int]) -> list[int]:
    """How many counts are at least 1, 2, ... up to the longest draft."""
    return [sum(count > at for count in counts) for at in range(max(drafted, default=0))]
