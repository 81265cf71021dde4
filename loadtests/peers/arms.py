"""What is compared: arms that answer the same prompts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

from loadtests.common.client import Client
from loadtests.common.prompts import Prompt
from loadtests.common.result import Result
from loadtests.peers.transformers_peer import Engine

PLAIN, SPECULATIVE = "plain", "speculative"
TRANSFORMERS, TRANSFORMERS_FP32 = "transformers", "transformers-fp32"
VLLM, VLLM_FP32, VLLM_EAGLE3 = "vllm", "vllm-fp32", "vllm-eagle3"
LLAMA = "llama"
PEERS = (TRANSFORMERS, TRANSFORMERS_FP32, VLLM, VLLM_FP32, VLLM_EAGLE3, LLAMA)
# In this order: each arm is compared with those before it.
ARMS = (*PEERS, PLAIN, SPECULATIVE)
# Peers that serve one request at a time.
SINGLE = (TRANSFORMERS, TRANSFORMERS_FP32, LLAMA)


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, its tokens with the chat template, and the seed it has in every arm."""

    prompt: Prompt
    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """What all arms are asked alike, temperature 0 for greedy outputs.

    No arm stops at an end token: outputs have one length.
    """

    max_tokens: int
    temperature: float


class Arm(Protocol):
    """One way to answer."""

    @property
    def name(self) -> str: ...

    @property
    def most(self) -> int | None:
        """Requests that it takes at once; None for any number."""

    async def answer(self, task: Task, sampling: Sampling) -> Result: ...


@dataclass(frozen=True, slots=True)
class RestArm:
    """A stack of Holdcourse through REST, with speculation or without."""

    name: str
    client: Client
    speculation: bool
    most: None = None

    async def answer(self, task: Task, sampling: Sampling) -> Result:
        return await self.client.chat(
            task.prompt.text,
            speculation=self.speculation,
            seed=task.seed,
            ignore_eos=True,
            **asdict(sampling),
        )


@dataclass(frozen=True, slots=True)
class PeerArm:
    """Another engine, asked without HTTP."""

    name: str
    peer: Engine

    @property
    def most(self) -> int | None:
        return self.peer.most

    async def answer(self, task: Task, sampling: Sampling) -> Result:
        return await self.peer.generate(
            task.tokens, seed=task.seed, ignore_eos=True, **asdict(sampling)
        )
