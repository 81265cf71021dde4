"""Settings of the verifier service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, model_validator

from specserve.cache_dir import cache_folder
from specserve.settings import (
    Address,
    AutoInt,
    AutoSize,
    Compile,
    CpuLevel,
    Device,
    Port,
    Settings,
    check,
    check_address,
    setting,
)

# Imported where it is needed: who only asks for the settings does not wait for torch.
if TYPE_CHECKING:
    import torch

DTypeName = Literal["auto", "bfloat16", "float16", "float32"]

_LOCAL = "local:"


def _check_drafter(text: str) -> str:
    if text == _LOCAL:
        raise ValueError("must name a checkpoint after local:")
    return text if text.startswith(_LOCAL) else check_address(text)


def _check_draft_length(text: str) -> str:
    if text != "auto" and not (text.isdecimal() and int(text) <= 16):
        raise ValueError("must be auto or a number from 0 to 16")
    return text


class VerifierSettings(Settings):
    """Serve a target model: python -m verifier_svc."""

    listen: Address = setting(
        "127.0.0.1:50051", "HOST:PORT to listen on.", env="HOLDCOURSE_VERIFIER_LISTEN"
    )
    target: str = setting(..., "Hugging Face id, folder, or .gguf file.")
    cache: str = setting(
        "", "Folder that .gguf targets are unpacked into; empty for holdcourse in the user's cache."
    )
    drafter: Annotated[str, AfterValidator(_check_drafter)] | None = setting(
        None, "HOST:PORT of the drafter, or local:PATH for a checkpoint that runs in this process, "
        "with the HOLDCOURSE_ variables of drafter_svc; none decodes plainly.",
        env="HOLDCOURSE_VERIFIER_DRAFTER",
    )  # fmt: skip
    dtype: DTypeName = setting("auto", "Of weights and cache; auto is bfloat16 where it is fast.")
    device: Device = setting("auto", "auto, cpu, cuda or cuda:N.")
    compile: Compile = setting(
        "auto", "Compile kernels with the machine's C++ compiler: auto goes on without one."
    )
    cpu_level: CpuLevel = setting(
        "auto", "Instructions that kernels use; auto takes the fastest that the CPU has."
    )
    max_model_len: int | None = setting(
        None,
        "Prompt and output tokens at most; by default the target's own limit, as far as "
        "it fits the memory.",
        ge=2,
    )
    kv_memory: AutoSize = setting(
        "auto", "Memory for the KV cache and the features beside it; auto is 2GiB on a CPU, and on "
        "a GPU most of what is free.", gt=0,
    )  # fmt: skip
    max_sequences: AutoInt = setting(
        "auto", "Sequences that run at once; auto is 32 on a CPU and 128 on a GPU.", ge=1, le=1024
    )
    max_waiting: int = setting(256, "Sequences that queue; more are refused.", ge=0)
    token_budget: AutoInt = setting(
        "auto", "Rows of a step that prompts may fill up to; auto is 512 on a CPU and 2048 on a "
        "GPU.", ge=32,
    )  # fmt: skip
    prefix_cache: bool = setting(True, "Keep the KV of ended sequences for prompts that begin so.")
    max_document_len: int = setting(
        4096,
        "Longest document of the Features call, in tokens; the first one takes the memory of "
        "such a sequence. 0 refuses the call.",
        ge=0,
    )
    speculation: bool = setting(True, "Use the drafter.")
    draft_length: Annotated[str, AfterValidator(_check_draft_length)] = setting(
        "auto", "Draft tokens per round: auto, or 0 to 16."
    )
    max_draft_tokens: int = setting(8, "Draft tokens per round at most.", ge=1, le=16)
    draft_deadline_ms: float = setting(100.0, "Longest wait for a draft.", gt=0)
    project_features: Literal["auto", "on", "off"] = setting(
        "auto", "Take the drafter's first step before features are sent, which are a third as long "
        "then; auto does so where the target is on a GPU and the drafter in another process.",
    )  # fmt: skip
    metrics_port: Port = setting(
        0, "Prometheus port; 0 serves none.", env="HOLDCOURSE_VERIFIER_METRICS_PORT"
    )
    drain_grace_s: float = setting(30.0, "Seconds that running generations get on SIGTERM.", ge=0)
    trust_remote_code: bool = setting(False, "Run code that the target's folder brings.")

    @model_validator(mode="after")
    def _check_projection(self) -> VerifierSettings:
        if self.project_features == "on" and self.local_checkpoint is not None:
            raise ValueError(
                "--project-features is for a drafter in another process: one in this process takes "
                "features where they are"
            )
        return self

    @property
    def local_checkpoint(self) -> str | None:
        """The checkpoint of a drafter in this process; None where it is another's, or none."""
        if self.drafter is None or not self.drafter.startswith(_LOCAL):
            return None
        return self.drafter.removeprefix(_LOCAL)

    @property
    def projects(self) -> bool:
        """Whether features are projected for a drafter in another process that takes them so."""
        # 40 rows of an 8B take less than half as long there and back, by gRPC 2.1 ms in place of
        # 4.6 (loadtests.hop). A GPU's step should take much less than that saves; on a CPU it would
        # hold up the target, while a drafter takes the rows beside the target's next step.
        if self.project_features == "auto":
            return self.torch_device.type == "cuda"
        return self.project_features == "on"

    @property
    def cache_folder(self) -> Path:
        """Where a GGUF target is kept unpacked."""
        return cache_folder(self.cache)

    @property
    def fixed_draft_length(self) -> int | None:
        """The one draft length to use, or None for the policy's choice."""
        return None if self.draft_length == "auto" else int(self.draft_length)

    @property
    def sequences(self) -> int:
        """Sequences that run at once."""
        # A GPU reads its weights for 256 rows in hardly more time than for one: that is as many
        # sequences with a draft token each.
        return self.max_sequences or (128 if self.torch_device.type == "cuda" else 32)

    @property
    def budget(self) -> int:
        """Rows of a step that prompts may fill up to."""
        # 512 rows of an 8B keep an H200 busy for 13 ms, hardly longer than to call its operators
        # takes. Beside sequences that decode, pace allows as many as they can bear.
        return self.token_budget or (2048 if self.torch_device.type == "cuda" else 512)

    @property
    def torch_device(self) -> torch.device:
        """The device to run on.

        Raises:
            StartError: torch does not see it.
        """
        from speckernels.device import pick_device

        return pick_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type of weights and cache; kernels are prepared before."""
        import torch

        from speckernels import default_dtype

        if self.dtype == "auto":
            return default_dtype(self.torch_device)
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


if __name__ == "__main__":
    sys.exit(check("verifier_svc", VerifierSettings))
