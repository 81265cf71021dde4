"""The measurement of the hop to a drafter, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.hop.__main__ import HopSettings, summarize
from loadtests.hop.link import GRPC, UNIX, Block
from specserve.settings import StartError


def test_rounds_come_back_by_both_ways(tmp_path: Path) -> None:
    output = tmp_path / "hop.json"
    sizes = ("--rows", "3,11", "--width", "64", "--rounds", "4", "--repeats", "2")
    command = [sys.executable, "-m", "loadtests.hop", *sizes, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["complete"]
    kinds = [(run["rows"], run["way"]) for run in found["runs"]]
    assert sorted(kinds) == sorted(2 * [(n, way) for n in (3, 11) for way in (GRPC, UNIX)])
    for run in found["summary"]["hops"]:
        for time in ("pack", "send", "there_and_back", "verifier", "drafter"):
            assert 0 < run[time] < 10, time
    assert "11, Unix socket" in done.stdout


def test_blocks_are_summed_up_by_size_and_way() -> None:
    blocks = [
        Block(way, 2, repeat, *(seconds * place for place in range(1, 6)))
        for way, factor in ((UNIX, 1.0), (GRPC, 10.0))
        for repeat, seconds in enumerate((factor, 2 * factor, 9 * factor))
    ]
    same, other = summarize(blocks).hops
    assert other == Block(GRPC, 2, 3, 20.0, 40.0, 60.0, 80.0, 100.0)
    assert same == Block(UNIX, 2, 3, 2.0, 4.0, 6.0, 8.0, 10.0)


@pytest.mark.parametrize("rows", ["0", "many", "1,,2", "4096"])
def test_bad_rows_are_refused_with_a_sentence(rows: str) -> None:
    with pytest.raises(StartError, match=r"^--rows: must be numbers"):
        HopSettings.read("hop", ["--rows", rows], {})
