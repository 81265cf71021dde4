"""What must be importable, in versions that work together, and who refuses. Imports it all."""

from __future__ import annotations

import sys
from importlib import import_module, metadata

from loadtests.gpu_check.options import Options

# The oldest that our calls were read against.
_OLDEST = {"torch": (2, 11), "transformers": (5, 17)}
_NEEDED = (
    *("numpy", "torch", "transformers", "safetensors", "tokenizers"),
    *("google.protobuf", "grpc", "grpc_health.v1.health", "grpc_reflection.v1alpha.reflection"),
    *("pydantic", "structlog", "prometheus_client", "uvloop", "rich"),
)
_GGUF = ("gguf", "accelerate")
# Generated code refuses runtimes that are older than it.
_OURS = (
    "specwire.v1.drafter_pb2_grpc",
    "specserve.server",
    "verifier_svc.build",
    "drafter_svc.build",
    "loadtests.capacity.engine_run",
)
_TOLD = (
    *("torch", "transformers", "numpy", "triton", "grpcio", "grpcio-health-checking"),
    *("grpcio-reflection", "protobuf", "pydantic", "pydantic-core", "structlog", "gguf"),
)


def refused(options: Options) -> list[str]:
    """Sentences on everything that cannot be used, in the order in which it is needed."""
    gguf = options.target is not None and options.target.suffix == ".gguf"
    sentences = [said for name in (*_NEEDED, *(_GGUF if gguf else ())) if (said := _refusal(name))]
    for name, oldest in _OLDEST.items():
        found = versions().get(name, "")
        if found and _number(found) < oldest:
            needed = ".".join(map(str, oldest))
            sentences.append(f"{name} is {found}, at least {needed} is needed")
    # What of ours fails where others do says nothing new.
    return sentences or [said for name in _OURS if (said := _refusal(name))]


def versions() -> dict[str, str]:
    """Of the interpreter and of what is installed, by name."""
    found = {"python": sys.version.partition(" ")[0]}
    for name in _TOLD:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _refusal(name: str) -> str | None:
    try:
        import_module(name)
    except Exception as error:  # some refuse in kinds of their own
        reason = str(error).strip().partition("\n")[0]
        return f"{name} cannot be imported: {reason or type(error).__name__}"
    return None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdecimal())
