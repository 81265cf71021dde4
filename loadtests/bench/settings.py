"""Settings of `python -m loadtests.bench`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from loadtests.peers.arms import ARMS, SINGLE, Sampling
from loadtests.peers.settings import PeerSettings, split
from specserve.settings import setting


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


class BenchSettings(PeerSettings):
    """Measures a running stack: the same prompts with speculation on and off, in turns.

    Greedy and sampled outputs take turns too. So do other engines where --arms names them, each in
    a process of its own that stands still between its turns: transformers' `generate` and
    llama.cpp, which serve one request and so take part at concurrency 1 alone, and vLLM plain or
    with a drafter's checkpoint. Their dtype is the served one, or float32 where the name ends so;
    llama.cpp computes with the weights of its file. Peers are asked without HTTP. Further stacks
    of Holdcourse, with other settings, take turns where --also names them. The first of each
    prompt's `turns` is asked. End tokens end no output, in no arm: all outputs have one length.
    """

    limit: int | None = setting(None, "Prompts to take from the file; none takes all.", ge=1)
    max_tokens: int = setting(128, "Tokens of each output.", ge=2)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)
    concurrency: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(split), Field(min_length=1)
    ] = setting("1", "Requests at once, as a closed loop; several levels as 1,4,16.")
    blocks: int | None = setting(
        None,
        "Blocks of prompts at each level at most: of one prompt at concurrency 1, else of twice "
        "the concurrency; none takes as many as the prompts fill.",
        ge=1,
    )
    temperature: Annotated[
        tuple[Annotated[float, Field(ge=0, le=2)], ...],
        BeforeValidator(split),
        Field(min_length=1),
    ] = setting("0,1", "Of every arm, in turns, 0 for greedy; our seeds are fixed by prompt.")
    also: Annotated[dict[str, str], BeforeValidator(_pairs)] = setting(
        "", "NAME=URL[,NAME=URL...]: arms that ask the gateways there, with speculation."
    )

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """What every arm is asked, for each temperature."""
        return tuple(Sampling(self.max_tokens, temperature) for temperature in self.temperature)

    @field_validator("concurrency", "temperature")
    @classmethod
    def _check_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(levels)) < len(levels):
            raise ValueError("must not name a value twice")
        return levels

    @model_validator(mode="after")
    def _check_single(self) -> BenchSettings:
        single = [name for name in self.arms if name in SINGLE]
        if single and 1 not in self.concurrency:
            raise ValueError(
                f"--arms {single[0]}: it serves one request at a time; let 1 be among --concurrency"
            )
        return self
