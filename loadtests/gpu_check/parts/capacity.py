"""`loadtests.capacity`, as anyone would run it: whole rounds with engines, threads and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.reckoned import host

_LENGTH, _CHANCE = 3, 0.7
# Of rounds, those that must have drafts in time, on a CPU any; a text's last one has no room.
_DRAFTED, _ANY = 0.95, 0.01
# Milliseconds of a round in Python, launches and waits, without drafts and with them.
_PLAIN_HOST = {1: 0.7, 16: 1.9, 64: 3.3}
_HOST = {1: 2.4, 16: 5.3, 64: 13.3}


def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    out = bench.options.out / "capacity.json"
    numbers = out.with_name("capacity-run.json")
    numbers.unlink(missing_ok=True)
    status, said = _run(bench, numbers)
    findings.holds("it ended as it should", status == 0, f"status {status}: {said}" * (status != 0))
    if not numbers.exists():
        return
    made = json.loads(numbers.read_text(encoding="utf-8"))
    findings.holds("all was measured", made.get("complete") is True)
    for level in made.get("summary", {}).get("levels", ()):
        _judge(level, bench, findings)


def _run(bench: Bench, numbers: Path) -> tuple[int, str]:
    """The command's exit status, and the last line of its log; both it and its tables are kept."""
    shapes = bench.shapes
    shape = shapes.shape
    if shape is None:
        folder = bench.options.out / "capacity-shape"
        LlamaConfig(**shapes.target_of()).save_pretrained(folder)
        shape = str(folder)
    given: dict[str, Any] = {
        "shape": shape,
        "draft-length": _LENGTH,
        "chance": _CHANCE,
        "device": bench.device,
        "compile": "off",
        "output": numbers,
        **shapes.capacity,
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "loadtests.capacity", *flags]
    log = numbers.with_name("capacity-log.txt")
    with numbers.with_name("capacity.txt").open("w") as printed, log.open("w") as logged:
        status = subprocess.run(command, stdout=printed, stderr=logged, check=False).returncode
    return status, next(iter(reversed(log.read_text().splitlines())), "")


def _judge(level: dict[str, Any], bench: Bench, findings: Findings) -> None:
    """One number of streams: every arm that drafts does so, and rounds take what they should."""
    streams = level["streams"]
    reckoned = bench.reckoned()
    for number, arm in enumerate(level["arms"]):
        name = f"{streams} streams, {arm['name']}"
        if number:
            drafted = _DRAFTED if bench.on_gpu else _ANY
            findings.at_least(f"{name}: rounds with drafts", arm["drafted"], drafted)
        bar = None
        if number == 0:
            bar = reckoned.forward(streams) + host(streams, _PLAIN_HOST)
        elif number == 1:
            rows = streams * (1 + _LENGTH)
            bar = reckoned.forward(rows) + host(streams, _HOST)
            bar += reckoned.drafted(streams, _LENGTH, _LENGTH)
        findings.speed(f"{name}: a round", 1e3 * arm["round"], bar)
        findings.note(f"{name}:", arm["tokens_per_second"], "tokens/s")
    for name in ("local_by_plain", "remote_by_plain", "remote_by_local"):
        if level[name] is not None:
            findings.note(f"{streams} streams, {name.replace('_', ' ')}", level[name]["median"])
