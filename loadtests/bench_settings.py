"""Settings of `python -m loadtests.bench`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from loadtests.arms import ARMS, PLAIN, SPECULATIVE, TRANSFORMERS, VLLM, VLLM_EAGLE3
from loadtests.settings import MeasuringSettings
from loadtests.vllm_peer import Drafter
from specwire.settings import setting


def _split(value: object) -> object:
    return tuple(p.strip() for p in value.split(",")) if isinstance(value, str) else value


def _pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
    names = [name for name, _, _ in pairs]
    if not all(re.fullmatch(r"[\w.-]+", name) and url for name, _, url in pairs):
        raise ValueError("must be NAME=URL, several separated by commas")
    if len({*names, *ARMS}) < len(names) + len(ARMS):
        raise ValueError(f"must have names of their own, none of {', '.join(ARMS)}")
    return {name: url for name, _, url in pairs}


class BenchSettings(MeasuringSettings):
    """Measures a running stack: the same prompts with speculation on and off, in turns.

    Other engines take turns too where --arms names them, each in a process of its own that stands
    still between its turns, in the dtype that is served: transformers' `generate`, which serves
    one request and so takes part at concurrency 1 alone, and vLLM plain or with a drafter's
    checkpoint. Peers are asked without HTTP. Further stacks of Holdcourse, with other settings,
    take turns where --also names them. The first of each prompt's `turns` is asked. End tokens
    end no output, in no arm: all outputs have one length.
    """

    limit: int | None = setting(None, "Prompts to take from the file; none takes all.", ge=1)
    max_tokens: int = setting(128, "Tokens of each output.", ge=2)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)
    concurrency: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split), Field(min_length=1)
    ] = setting("1", "Requests at once, as a closed loop; several levels as 1,4,16.")
    blocks: int | None = setting(
        None,
        "Blocks of prompts at each level at most: of one prompt at concurrency 1, else of twice "
        "the concurrency; none takes as many as the prompts fill.",
        ge=1,
    )
    temperature: float = setting(0.0, "Of every arm; seeds are fixed by prompt.", ge=0, le=2)
    arms: Annotated[tuple[str, ...], BeforeValidator(_split)] = setting(
        f"{PLAIN},{SPECULATIVE}", f"What is measured, of {', '.join(ARMS)}."
    )
    also: Annotated[dict[str, str], BeforeValidator(_pairs)] = setting(
        "", "NAME=URL[,NAME=URL...]: arms that ask the gateways there, with speculation."
    )
    peer_target: str | None = setting(
        None, "The served model for the other engines: Hugging Face id, folder or .gguf file."
    )
    vllm_python: str | None = setting(None, "Python of an environment that has vLLM.")
    vllm_checkpoint: str | None = setting(
        None, f"Drafter for {VLLM_EAGLE3}: the checkpoint folder that the stack serves."
    )
    vllm_draft_length: int = setting(5, f"Draft tokens per round of {VLLM_EAGLE3}.", ge=1, le=16)
    vllm_eager: bool = setting(False, "Let vLLM start sooner, without compiling its models.")

    @property
    def drafter(self) -> Drafter:
        """What `vllm-eagle3` drafts with."""
        assert self.vllm_checkpoint is not None
        return Drafter(self.vllm_checkpoint, self.vllm_draft_length)

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not set(names) <= set(ARMS) or len(set(names)) < len(names):
            raise ValueError(f"must be some of {', '.join(ARMS)}, separated by commas")
        return names

    @field_validator("concurrency")
    @classmethod
    def _check_levels(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(levels)) < len(levels):
            raise ValueError("must not name a level twice")
        return levels

    @model_validator(mode="after")
    def _check_peers(self) -> BenchSettings:
        names = set(self.arms)
        if TRANSFORMERS in names and 1 not in self.concurrency:
            raise ValueError(
                f"--arms {TRANSFORMERS}: one `generate` serves one request; "
                "let 1 be among --concurrency"
            )
        needs = {
            "--peer-target": (self.peer_target, {TRANSFORMERS, VLLM, VLLM_EAGLE3}),
            "--vllm-python": (self.vllm_python, {VLLM, VLLM_EAGLE3}),
            "--vllm-checkpoint": (self.vllm_checkpoint, {VLLM_EAGLE3}),
        }
        for flag, (value, arms) in needs.items():
            if not value and names & arms:
                raise ValueError(f"--arms {min(names & arms)} needs {flag}")
            if value and not names & arms:
                raise ValueError(f"{flag} is for --arms {' or '.join(sorted(arms))}")
        return self
