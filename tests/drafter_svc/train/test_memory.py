"""The memory command on a tiny Llama; each length has a process of its own."""

import sys
from pathlib import Path

import pytest

from drafter_svc.train.memory import MemorySettings, main, measure_memory
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of long texts."""
    return write_tiny_llama(tmp_path_factory.mktemp("patient"), max_length=4096)


def test_a_longer_sequence_takes_more_memory(patient: Path) -> None:
    """In this process, where a peak starts from the memory in use."""
    taken = []
    for length in (64, 3000):
        before, peak = measure_memory(MemorySettings(str(patient)), length)
        assert peak >= before > 0
        taken.append(peak - before)
    assert taken[1] > taken[0] + 2**20


def test_the_command_prints_a_line_for_each_length(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], patient: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory", "--target", str(patient), "--lengths", "99"])
    assert main() == 0
    length, before, peak, difference = capsys.readouterr().out.splitlines()[1].split()
    assert length == "99"
    assert 50 < int(before) <= int(peak)
    assert abs(int(peak) - int(before) - int(difference)) <= 1


def test_the_command_refuses_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, complaint in (
        (["--lengths", "2"], "lengths must be numbers from 3 on"),
        (["--changes", "layer=2"], "no setting 'layer'"),
    ):
        monkeypatch.setattr(sys, "argv", ["memory", "--target", "none", *more])
        assert main() == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("drafter_svc.train.memory: ")
        assert complaint in last
