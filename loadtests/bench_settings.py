"""Settings of `python -m loadtests.bench`."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator, model_validator

from loadtests.arms import ARMS, PLAIN, SPECULATIVE, TRANSFORMERS, VLLM, VLLM_EAGLE3
from loadtests.vllm_peer import Drafter
from specwire.settings import Settings, setting


class BenchSettings(Settings):
    """Measures a running stack: the same prompts with speculation on and off, in turns.

    Other engines take turns too where --arms names them, each in a process of its own that stands
    still between its turns, in the dtype that is served: transformers' `generate`, and vLLM plain
    or with a drafter's checkpoint. Peers are asked without HTTP. End tokens end no output, in no
    arm: all outputs have one length.
    """

    prompts: str = setting(..., "File of JSON lines; the first of each line's `turns` is asked.")
    url: str = setting("http://127.0.0.1:8000", "The gateway.")
    api_key: str | None = setting(None, "Key for the gateway.")
    limit: int | None = setting(None, "Prompts to take from the file; none takes all.", ge=1)
    max_tokens: int = setting(128, "Tokens of each output.", ge=2)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)
    concurrency: int = setting(1, "Requests at once, as a closed loop.", ge=1)
    temperature: float = setting(0.0, "Of every arm; seeds are fixed by prompt.", ge=0, le=2)
    arms: str = setting(f"{PLAIN},{SPECULATIVE}", f"What is measured, of {', '.join(ARMS)}.")
    peer_target: str | None = setting(
        None, "The served model for the other engines: Hugging Face id, folder or .gguf file."
    )
    vllm_python: str | None = setting(None, "Python of an environment that has vLLM.")
    vllm_checkpoint: str | None = setting(
        None, f"Drafter for {VLLM_EAGLE3}: the checkpoint folder that the stack serves."
    )
    vllm_draft_length: int = setting(5, f"Draft tokens per round of {VLLM_EAGLE3}.", ge=1, le=16)
    vllm_eager: bool = setting(False, "Let vLLM start sooner, without compiling its models.")
    output: str | None = setting(None, "File for all numbers as JSON, every request included.")

    @property
    def arm_names(self) -> list[str]:
        """The arms, in the order in which they first take turns."""
        return self.arms.split(",")

    @property
    def drafter(self) -> Drafter:
        """What `vllm-eagle3` drafts with."""
        assert self.vllm_checkpoint is not None
        return Drafter(self.vllm_checkpoint, self.vllm_draft_length)

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: str) -> str:
        names = [name.strip() for name in arms.split(",")]
        if not set(names) <= set(ARMS) or len(set(names)) < len(names):
            raise ValueError(f"must be some of {', '.join(ARMS)}, separated by commas")
        return ",".join(names)

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str | None) -> str | None:
        if output and not Path(output).absolute().parent.is_dir():
            raise ValueError("must be in a folder that exists")
        return output

    @model_validator(mode="after")
    def _check_peers(self) -> BenchSettings:
        names = set(self.arm_names)
        if TRANSFORMERS in names and self.concurrency > 1:
            raise ValueError(
                f"--arms {TRANSFORMERS}: one `generate` serves one request; use --concurrency 1"
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
