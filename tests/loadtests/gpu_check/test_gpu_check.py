"""The check of a GPU: its parts on a CPU, what becomes of a part that fails, and its table."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from loadtests.capacity.engine_run import Window
from loadtests.capacity.report import summarize
from loadtests.gpu_check import packages, report, stand_in, wheels
from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.findings import Check, Findings, read
from loadtests.gpu_check.options import OptionError, Options
from loadtests.gpu_check.parts import PARTS, Part, capacity
from loadtests.gpu_check.reckoned import Rates, Reckoned, host
from loadtests.gpu_check.runner import Outcome, Runner
from loadtests.gpu_check.screen import Screen
from loadtests.gpu_check.shapes import shapes_of
from tests.loadtests.checked import light

CPU = torch.device("cpu")
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
# What a busy machine may take for a part, in its limits.
PATIENT = ("--patience", "20", "--minutes", "60")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.gpu_check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_a_whole_run_on_a_cpu(tmp_path: Path) -> None:
    done = check("--size", "tiny", "--device", "cpu", "--out", str(tmp_path), *PATIENT)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    lines = [line.split()[:2] for line in done.stdout.splitlines()[: len(PARTS)]]
    assert lines == [["pass", part.name] for part in PARTS]
    assert "no time has a bar" in done.stdout
    table = (tmp_path / "table.txt").read_text()
    assert table in done.stdout
    assert (tmp_path / "table.md").read_text().count("\n|") > 40
    for part in PARTS:
        checks, _ = read(tmp_path / f"{part.name}.json")
        assert checks
        assert f"{part.name} " in table
    assert "Self CPU" in (tmp_path / "kernels-1.txt").read_text()
    drafted = [c for c in read(tmp_path / "capacity.json")[0] if "rounds with drafts" in c.name]
    assert len(drafted) == 2
    assert all(c.figure and c.bar for c in drafted)
    same = read(tmp_path / "texts.json")[0]
    assert [c.figure for c in same if "drafts changed" in c.name] == [0, 0]


def test_a_round_of_capacity_has_bars_and_must_be_drafted(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "capacity.json")
    facts = {"memory_rate": 4.3e12, "product_rate": 700e12}
    Findings(tmp_path / "versions.json").know(**facts)
    bench = Bench(Options(tmp_path), torch.device("cuda"), shapes_of("full", CPU))
    arms = [("plain", 0.009, 0.0), ("here", 0.020, 0.99), ("there", 0.030, 0.90)]
    waves = [
        Window(name, 64, 0, 7000.0, round, 0.008, 0.004, 64, drafted, 0.7, None)
        for name, round, drafted in arms
    ]
    (level,) = summarize(waves, ("plain", "here", "there")).levels
    capacity._judge(asdict(level), bench, findings)
    judged = {check.name: check for check in findings.checks if check.bar is not None}
    assert [check.name for check in judged.values() if not check.passed] == [
        "64 streams, there: rounds with drafts"
    ]
    # What was reckoned at 64 streams, a quarter more of what the device does, and the host.
    assert judged["64 streams, plain: a round"].bar == pytest.approx(1.25 * 5.3 + 3.3, rel=0.05)
    assert judged["64 streams, here: a round"].bar == pytest.approx(27.3, rel=0.05)


def test_all_that_refuses_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_NEEDED", ("numpy", "no_such_package", "nor_this_one"))
    monkeypatch.setattr(
        packages, "versions", lambda: {"torch": "2.9.1+cu130", "transformers": "5.17.0"}
    )
    monkeypatch.setattr(packages, "_OURS", ("loadtests.nothing",))
    assert packages.refused(Options(Path())) == [
        "no_such_package cannot be imported: No module named 'no_such_package'",
        "nor_this_one cannot be imported: No module named 'nor_this_one'",
        "torch is 2.9.1+cu130, at least 2.11 is needed",
    ]


PACKAGE = "tests.loadtests.checked"


def ran(tmp_path: Path, *names: str, limit: float = 60.0, **options: Any) -> Runner:
    """A runner whose parts of the test's own have run."""
    made = [Part(name, f"{name} things", limit, PACKAGE) for name in names]
    chosen = Runner(Options(tmp_path, **options), Screen(), made, light)
    chosen.run()
    return chosen


def test_a_part_that_fails_does_not_stop_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("passes", "slow_figure", "raises", "dies", "hangs", "checks_nothing", "passes")
    made = ran(tmp_path, *names, limit=2.0)
    assert not made.passed
    assert [outcome.passed for outcome in made.outcomes] == [True, *[False] * 5, True]
    lines = [outcome.headline for outcome in made.outcomes]
    assert lines[0] == "near 1.9 ms, at most 2"
    assert lines[1] == "slow 3 ms, at most 2"
    assert lines[2] == "ValueError: no"
    assert lines[3] == "its process ended with status 7"
    assert lines[4] == "not done after 2 s"
    assert lines[5] == "nothing was checked"
    # What was found before a part failed is kept, and where it was at is in the log.
    assert [c.name for c in made.outcomes[2].checks] == ["before", "ValueError: no"]
    log = (tmp_path / "log.txt").read_text()
    assert "ValueError: no\nmore" in log
    assert "hangs.py" in log
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["pass", *["FAIL"] * 5, "pass"]


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    made = ran(tmp_path, "passes", "leaves_a_child", limit=2.0)
    assert not made.passed
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_without_the_first_part_nothing_is_said(tmp_path: Path) -> None:
    made = ran(tmp_path, "raises", "passes")
    assert [outcome.skipped for outcome in made.outcomes] == [
        "",
        "without raises things nothing can be said",
    ]
    assert not made.passed


def test_what_is_left_when_time_is_over_is_skipped(tmp_path: Path) -> None:
    made = ran(tmp_path, "takes_a_second", "passes", minutes=0.1)
    assert [outcome.passed for outcome in made.outcomes] == [True, False]
    assert made.outcomes[1].skipped == "0.1 minutes are over"
    assert not made.passed
    text = report.write(made.outcomes, "remark", tmp_path)
    assert text.splitlines()[-1].split() == ["passes", "0.1", "minutes", "are", "over", "skip"]


def test_figures_are_held_against_their_bars(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "a.json")
    assert findings.at_most("a", 2, 2)
    assert not findings.at_most("b", math.nan, 2)
    assert findings.at_least("c", 2, 2)
    assert not findings.at_least("d", math.nan, 2)
    assert not findings.speed("e", 3.0, 2.0)
    assert findings.speed("f", 3.0, None)
    slow = Findings(tmp_path / "b.json", fast=False)
    assert slow.speed("g", 3.0, 2.0), "a CPU's times say nothing"
    assert slow.checks[0].bar is None
    assert list(map(str, read(tmp_path / "a.json")[0])) == list(map(str, findings.checks))
    assert Check("h", True, 1.0, 2.0).strain < Check("i", True, 2.0, 1.9, least=True).strain < 1


def test_a_table_has_a_line_for_each_check(tmp_path: Path) -> None:
    checks = (
        Check("a | b", False, 3.0, 2.0, unit="ms"),
        Check("c", True, 12345.0),
        Check("d", True),
    )
    outcomes = [
        Outcome(Part("one", "one", 1), 1.0, checks),
        Outcome(Part("two", "", 1), 0, (), "no"),
    ]
    text = report.write(outcomes, "remark", tmp_path).splitlines()
    assert [line.split() for line in text[4:]] == [
        ["one", "a", "|", "b", "3", "ms", "<=", "2", "FAIL"],
        ["one", "c", "12,345"],
        ["one", "d", "pass"],
        ["two", "no", "skip"],
    ]
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[4] == "| one | a / b | 3 ms | <= 2 | FAIL |"


def test_bars_of_an_8b_on_an_h200_are_those_that_were_reckoned() -> None:
    """A quarter above what a round of Llama-3.1-8B should take there."""
    reckoned = Reckoned(LLAMA_8B, Rates(4.3e12, 700e12))
    for rows, milliseconds in ((1, 5.3), (16, 5.3), (64, 5.3), (256, 9.5)):
        assert reckoned.forward(rows) == pytest.approx(1.25 * milliseconds, rel=0.06)
    assert reckoned.drafted(1, 3, 3) == pytest.approx(1.25 * 1.0, rel=0.15)
    assert host(1, {1: 2.0, 17: 4.0}) == 2.0
    assert host(9, {1: 2.0, 17: 4.0}) == 3.0
    assert host(99, {1: 2.0, 17: 4.0}) == 4.0


@pytest.mark.parametrize(("left", "right"), [(-1, -1), (-1, 0), (2, 0), (None, None)])
def test_the_stand_in_attends_by_the_rule(left: int | None, right: int | None) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(4, 4, 8), *torch.randn(2, 20, 2, 8)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    out, sums, *_ = stand_in._flash_attention_forward(
        query, keys, values, numbers(0, 3, 3, 4), numbers(9, 0, 1, 0), 3, 9, 0.0, False, False,
        scale=0.3, window_size_left=left, window_size_right=right, seqused_k=numbers(7, 0, 5),
    )  # fmt: skip
    for row, (start, length, place) in enumerate([(9, 7, 4), (9, 7, 5), (9, 7, 6), (1, 5, 4)]):
        last = length if right in (None, -1) else place + 1
        first = 0 if left in (None, -1) else max(0, place - 2)
        read, held = (
            pool[start + first : start + last].transpose(0, 1).repeat_interleave(2, 0)
            for pool in (keys, values)
        )
        asked = query[row, :, None]
        wanted = F.scaled_dot_product_attention(asked, read, held, scale=0.3)[:, 0]
        torch.testing.assert_close(out[row], wanted)
        lse = (asked @ read.transpose(1, 2) * 0.3).logsumexp(-1)[:, 0]
        torch.testing.assert_close(sums[:, row], lse)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--wheels", "/nowhere"], "--wheels: there is no folder /nowhere."),
        (["--target", "/nowhere.gguf"], "--target: there is neither a file nor a folder"),
        (["--minutes", "0"], "--minutes: must be above 0 and at most 120, not 0."),
        (["--patience", "nan"], "--patience: must be above 0 and at most 100, not nan."),
        (["--parts", "versions,chains"], "--parts: chains is none of versions, attention,"),
        (["--size", "huge"], "invalid choice: 'huge'"),
        (["--out", __file__], "is not a folder."),
    ],
)
def test_what_cannot_be_asked_for(arguments: list[str], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence.replace(".", r"\.")):
        Options.read(arguments)


def test_a_bad_option_is_one_sentence() -> None:
    done = check("--minutes", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "loadtests.gpu_check: --minutes: must be above 0 and at most 120, not 0."
    ]


@pytest.fixture
def write_wheel(tmp_path: Path) -> Callable[..., Path]:
    def write(tag: str, **files: str) -> Path:
        folder = tmp_path / "wheels"
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / f"told-1.0-{tag}.whl", "w") as archive:
            for name, content in files.items():
                archive.writestr(name.replace("__", "/").replace("_py", ".py"), content)
        return folder

    return write


def test_wheels_come_first_for_children_too(
    write_wheel: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(
        "py3-none-any", told_py="here = 1", **{"told-1.0.data__purelib__aside_py": "here = 2"}
    )
    folder = write_wheel("cp27-cp27m-win32", told_py="here = 3")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    left = wheels.unpack(folder, tmp_path / "unpacked")
    assert left == ["told-1.0-cp27-cp27m-win32.whl"]
    assert sys.path[0] == str(tmp_path / "unpacked")
    assert os.environ["PYTHONPATH"].endswith(":/elsewhere")
    code = "import told, aside; print(told.here, aside.here)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]


def test_wheels_that_nobody_can_use_are_refused(
    write_wheel: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = write_wheel("cp27-cp27m-win32")
    with pytest.raises(OptionError, match="no wheel for this interpreter"):
        wheels.unpack(folder, tmp_path / "unpacked")
    (folder / "broken-1.0-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(OptionError, match="cannot be unpacked"):
        wheels.unpack(folder, tmp_path / "unpacked")


def test_nothing_but_python_is_needed_to_begin() -> None:
    """What is missing must be said by the first part, in a sentence."""
    code = "import loadtests.gpu_check.__main__, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "transformers", "grpc", "pydantic", "structlog", "pytest", "rich"}
