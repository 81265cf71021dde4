"""Memory that a start took for a while."""

from __future__ import annotations

import ctypes


def malloc_trim() -> None:
    """Hand what was freed to the system, where the C library keeps it and can (glibc's)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
