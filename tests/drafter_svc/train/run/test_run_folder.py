"""State on disk: replaced in one step, refused when damaged, intact when the disk is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from drafter_svc.train.run.held_out import Measurement
from drafter_svc.train.run.plot_curve import draw_curve
from drafter_svc.train.run.run_folder import Position, RunFolder
from drafter_svc.train.run.throughput import Throughput
from drafter_svc.train.settings import TrainSettings

MEASURED = Measurement([0.5, 0.25], [0.4, 0.3], 0.7, 1.6, 10)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(TrainSettings("target", ["data"], str(tmp_path)), "key")


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_state_before(folder: RunFolder) -> None:
    state = {"weights": torch.arange(100_000.0)}
    folder.save(Position(3, 30, 1.0), state)
    with small_disk(100_000), pytest.raises(OSError, match="the one before is intact"):
        folder.save(Position(4, 40, 2.0), state)
    loaded = folder.load()
    assert loaded is not None
    assert loaded[0] == Position(3, 30, 1.0)
    assert torch.equal(loaded[1]["weights"], state["weights"])
    assert not list(folder.path.glob("*.partial"))


def test_a_truncated_state_is_refused_by_name(folder: RunFolder) -> None:
    folder.save(Position(), {"weights": torch.arange(1000.0)})
    path = folder.path / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.pt is damaged"):
        folder.load()


def test_the_curve_shows_every_step_of_the_log(folder: RunFolder) -> None:
    for tokens in (0, 1000, 2000):
        folder.log(
            Position(tokens // 10, tokens), 0.5, 1e-3, [3.0], MEASURED, Throughput(600.04, 2e9)
        )
    picture = folder.path / "curve.svg"
    draw_curve(folder.log_file, picture)
    root = ElementTree.parse(picture).getroot()
    text = " ".join(element.text or "" for element in root.iter())
    for legend in ("top-1, step 1", "top-1, step 2", "acceptance length", "tokens"):
        assert legend in text
    assert "http://kozea" not in picture.read_text()


def test_a_run_from_before_a_setting_existed_had_its_default(folder: RunFolder) -> None:
    folder.save(Position(5), {})
    path = folder.path / "last.pt"
    state = torch.load(path, weights_only=True)
    del state["settings"]["layers"]
    torch.save(state, path)
    loaded = folder.load()
    assert loaded is not None
    assert loaded[0] == Position(5)
    deeper = RunFolder(TrainSettings("target", ["data"], str(folder.path), layers=2), "key")
    with pytest.raises(ValueError, match="another layers"):
        deeper.load()
