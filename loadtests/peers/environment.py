"""The environment of other engines' processes, and the instructions that they are held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Isa = Literal["avx2", "avx512", "avx512_bf16", "native"]

_ATEN, _ONEDNN, _MKL = (
    ("ATEN_CPU_CAPABILITY",),
    ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    ("MKL_ENABLE_INSTRUCTIONS",),
)
# What torch's own operators, oneDNN and MKL call each level.
_LEVELS: Mapping[str, tuple[str, str, str]] = {
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512"),
}
# Variables by which the speed of an engine can be explained, by how their names begin.
TELLING = (
    *("VLLM_", "OMP_", "KMP_", "GOMP_", "LD_PRELOAD"),
    *("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "GGML_"),
)


def held_to(isa: Isa, given: Mapping[str, str]) -> dict[str, str]:
    """The environment `given`, in which torch's libraries stay below what `isa` has not.

    What an engine compiled for itself does not read these variables: it needs a build of its own.
    """
    environment = dict(given)
    if isa != "native":
        for names, value in zip((_ATEN, _ONEDNN, _MKL), _LEVELS[isa], strict=True):
            environment |= dict.fromkeys(names, value)
    return environment


def foreign(given: Mapping[str, str]) -> dict[str, str]:
    """An environment for another Python: `given` without what finds our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    defaults = {"PYTHONSAFEPATH": "1"}  # a child's neighbours are no modules of its own
    return defaults | {name: value for name, value in given.items() if name not in ours}


def telling(given: Mapping[str, str]) -> dict[str, str]:
    """What of an environment belongs beside a measurement."""
    return {name: value for name, value in sorted(given.items()) if name.startswith(TELLING)}
