"""Settings of the commands that let other engines take turns."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import BeforeValidator, field_validator, model_validator

from loadtests.common.settings import MeasuringSettings
from loadtests.peers.arms import (
    ARMS,
    LLAMA,
    PEERS,
    PLAIN,
    SPECULATIVE,
    VLLM,
    VLLM_EAGLE3,
    VLLM_FP32,
)
from loadtests.peers.environment import Isa, held_to
from loadtests.peers.vllm_peer import Drafter
from specserve.settings import setting


def split(value: object) -> object:
    """A list that was written with commas."""
    return tuple(p.strip() for p in value.split(",")) if isinstance(value, str) else value


class PeerSettings(MeasuringSettings):
    """What is measured beside what, and where the other engines are."""

    arms: Annotated[tuple[str, ...], BeforeValidator(split)] = setting(
        f"{PLAIN},{SPECULATIVE}", f"What is measured, of {', '.join(ARMS)}."
    )
    peer_target: str | None = setting(
        None,
        f"The served model for the other engines: Hugging Face id, folder or .gguf file; {LLAMA} "
        "takes files alone.",
    )
    peer_isa: Isa = setting(
        "native",
        "Level of instructions that torch, oneDNN and MKL are held to in the other engines: avx2, "
        "avx512, avx512_bf16 or native. What an engine compiled for itself needs a build for it.",
    )
    vllm_python: str | None = setting(None, "Python of an environment that has vLLM.")
    vllm_checkpoint: str | None = setting(
        None, f"Drafter for {VLLM_EAGLE3}: the checkpoint folder that the stack serves."
    )
    vllm_draft_length: int = setting(5, f"Draft tokens per round of {VLLM_EAGLE3}.", ge=1, le=16)
    vllm_eager: bool = setting(False, "Let vLLM start sooner, without compiling its models.")
    llama_python: str | None = setting(
        None, "Python of an environment that has llama-cpp-python, built for the level."
    )

    @property
    def drafter(self) -> Drafter:
        """What `vllm-eagle3` drafts with."""
        assert self.vllm_checkpoint is not None
        return Drafter(self.vllm_checkpoint, self.vllm_draft_length)

    @property
    def peer_environment(self) -> dict[str, str]:
        """Of the other engines' processes."""
        return held_to(self.peer_isa, os.environ)

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not set(names) <= set(ARMS) or len(set(names)) < len(names):
            raise ValueError(f"must be some of {', '.join(ARMS)}, separated by commas")
        return names

    @model_validator(mode="after")
    def _check_peers(self) -> PeerSettings:
        names, peers = set(self.arms), set(PEERS)
        needs = {
            "--peer-target": (self.peer_target, peers),
            "--vllm-python": (self.vllm_python, {VLLM, VLLM_FP32, VLLM_EAGLE3}),
            "--vllm-checkpoint": (self.vllm_checkpoint, {VLLM_EAGLE3}),
            "--llama-python": (self.llama_python, {LLAMA}),
        }
        for flag, (value, arms) in needs.items():
            if not value and names & arms:
                raise ValueError(f"--arms {min(names & arms)} needs {flag}")
            if value and not names & arms:
                raise ValueError(f"{flag} is for --arms {' or '.join(sorted(arms))}")
        if self.peer_isa != "native" and not names & peers:
            raise ValueError(f"--peer-isa is for --arms {' or '.join(sorted(peers))}")
        return self
