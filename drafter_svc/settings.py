"""Settings of the drafter service."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from specserve.cache_dir import cache_folder
from specserve.settings import (
    Address,
    AutoSize,
    Compile,
    CpuLevel,
    Device,
    Port,
    Settings,
    check,
    setting,
)


def _check_lookup(text: str) -> str:
    if not re.fullmatch("off|[1-9]|1[0-6]", text):
        raise ValueError("must be off or a number from 1 to 16")
    return text


class DrafterSettings(Settings):
    """Holdcourse's drafter: proposes tokens from a target's features."""

    listen: Address = setting(
        "127.0.0.1:50052", "HOST:PORT to listen on.", env="HOLDCOURSE_DRAFTER_LISTEN"
    )
    checkpoint: str = setting(
        ..., "Folder with the drafter's checkpoint.", env="HOLDCOURSE_DRAFTER", min_length=1
    )
    target: str = setting(
        ..., "Hugging Face id, folder or .gguf file that the embeddings are read from."
    )
    cache: str = setting(
        "",
        "Folder that .gguf targets are unpacked into; empty for holdcourse in the user's cache.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "Element type of weights and KV; auto takes bfloat16 where it is fast."
    )
    device: Device = setting(
        "auto", "cpu, cuda, cuda:1, ...; auto takes the last GPU that is there.",
        env="HOLDCOURSE_DRAFTER_DEVICE",
    )  # fmt: skip
    kv_memory: AutoSize = setting(
        "auto", "Memory for the sequences' KV; auto is 512MiB on a CPU, and on a GPU a sixteenth "
        "of what is free.", env="HOLDCOURSE_DRAFTER_KV_MEMORY", gt=0,
    )  # fmt: skip
    threads: int = setting(
        0, "Threads that its operators run on; 0 leaves the number to torch.",
        env="HOLDCOURSE_DRAFTER_THREADS", ge=0,
    )  # fmt: skip
    compile: Compile = setting(
        "auto", "Compile kernels with the machine's C++ compiler: auto goes on without one."
    )
    cpu_level: CpuLevel = setting(
        "auto", "Instructions that kernels use; auto takes the fastest that the CPU has."
    )
    max_draft_tokens: int = setting(16, "Longest draft that is served.", ge=1, le=64)
    lookup: Annotated[str, AfterValidator(_check_lookup)] = setting(
        "2",
        "Last tokens that must have occurred before for a lookup to propose what followed them, in "
        "place of the chain; or off.",
    )
    same_host: bool = setting(
        True, "Take rounds of verifiers on the same host by a Unix socket, faster than by gRPC."
    )
    metrics_port: Port = setting(
        9102, "Port of Prometheus metrics; 0 serves none.", env="HOLDCOURSE_DRAFTER_METRICS_PORT"
    )
    trust_remote_code: bool = setting(False, "Run Python code that comes with the target.")

    @property
    def cache_folder(self) -> Path:
        """Where a GGUF target is kept unpacked."""
        return cache_folder(self.cache)

    @property
    def lookup_match(self) -> int:
        """Shortest repeated suffix that is looked up; 0 for none."""
        return 0 if self.lookup == "off" else int(self.lookup)


if __name__ == "__main__":
    sys.exit(check("drafter_svc", DrafterSettings))
