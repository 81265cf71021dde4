"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what tests before it have freed would be taken again, and not grow.
SCRIPT = """
import os
from pathlib import Path
from specserve.malloc_trim import malloc_trim

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

size = 1 << 16  # of an allocation from the heap, which the C library keeps when it is freed
before = resident()
held = [bytes([1]) * size for _ in range(1024)]
last = bytes([1]) * size
print(resident() - before)
held.clear()
malloc_trim()
print(resident() - before)
"""


def test_what_was_freed_below_what_stays_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    held, left = map(int, run.stdout.split())
    assert held > 48 << 20
    assert left < 24 << 20
