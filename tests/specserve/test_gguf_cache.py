"""GGUF files that are unpacked into the cache once."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from specserve.gguf_cache import UnpackedGguf, find_unpacked_gguf, unpack_gguf
from specserve.model_source import ModelSource


class Writer:
    """Writes two files, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> str:
        assert not list(folder.iterdir())
        self.calls += 1
        (folder / "config.json").write_text(f"{self.calls}")
        (folder / "model.safetensors").write_bytes(bytes(1 << 10))
        return "embed.weight"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Model.gguf"
    path.write_bytes(b"packed")
    return path


def test_a_file_is_unpacked_once_for_each_dtype(file: Path, tmp_path: Path) -> None:
    cache, write = tmp_path / "cache", Writer()
    assert find_unpacked_gguf(file, "bfloat16", cache) is None
    made = unpack_gguf(file, "bfloat16", cache, write)
    assert (
        made
        == find_unpacked_gguf(file, "bfloat16", cache)
        == unpack_gguf(file, "bfloat16", cache, write)
    )
    assert made.embedding == "embed.weight"
    assert write.calls == 1
    assert unpack_gguf(file, "float32", cache, write).folder != made.folder
    assert write.calls == 2


def newer(file: Path, folder: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def longer(file: Path, folder: Path) -> None:
    stat = file.stat()
    file.write_bytes(b"packed anew")
    os.utime(file, ns=(0, stat.st_mtime_ns))


def cut(file: Path, folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def changed(file: Path, folder: Path) -> None:
    (folder / "config.json").write_text("x")


def lost(file: Path, folder: Path) -> None:
    (folder / "config.json").unlink()


def unnamed(file: Path, folder: Path) -> None:
    (folder / "holdcourse.json").write_text("[]")


@pytest.mark.parametrize("happen", [newer, longer, cut, changed, lost, unnamed])
def test_what_is_outdated_or_damaged_is_replaced(
    file: Path, tmp_path: Path, happen: Callable[[Path, Path], None]
) -> None:
    write = Writer()
    made = unpack_gguf(file, "bfloat16", tmp_path, write)
    happen(file, Path(made.folder))
    assert find_unpacked_gguf(file, "bfloat16", tmp_path) is None
    assert unpack_gguf(file, "bfloat16", tmp_path, write) == made
    assert (Path(made.folder) / "config.json").read_text() == "2"
    assert find_unpacked_gguf(file, "bfloat16", tmp_path) == made


def test_another_version_of_transformers_unpacks_anew(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack_gguf(file, "bfloat16", tmp_path, Writer())
    monkeypatch.setattr("specserve.gguf_cache.version", lambda library: "0")
    assert find_unpacked_gguf(file, "bfloat16", tmp_path) is None


def test_what_could_not_be_written_leaves_nothing(file: Path, tmp_path: Path) -> None:
    def fail(folder: Path) -> str:
        (folder / "config.json").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        unpack_gguf(file, "bfloat16", tmp_path, fail)
    assert [path.suffix for path in (tmp_path / "targets").iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_no_obstacle(file: Path, tmp_path: Path) -> None:
    write = Writer()
    made = unpack_gguf(file, "bfloat16", tmp_path, write)
    shutil.move(made.folder, f"{made.folder}.part")
    assert unpack_gguf(file, "bfloat16", tmp_path, write) == made
    assert write.calls == 2


def test_who_comes_second_waits_for_the_first(file: Path, tmp_path: Path) -> None:
    write, writing, go_on = Writer(), threading.Event(), threading.Event()

    def slowly(folder: Path) -> str:
        writing.set()
        assert go_on.wait(10)
        return write(folder)

    results: list[UnpackedGguf] = []

    def run() -> None:
        results.append(unpack_gguf(file, "bfloat16", tmp_path, slowly))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert writing.wait(10)
    assert not results
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(results) == 2
    assert results[0] == results[1]
    assert write.calls == 1


def test_a_source_reads_from_the_cache_and_keeps_its_name(file: Path, tmp_path: Path) -> None:
    source = ModelSource.parse(str(file))
    assert source.cached("bfloat16", tmp_path) == source
    made = source.unpack("bfloat16", tmp_path, Writer())
    assert made == source.cached("bfloat16", tmp_path) != source
    assert made.unpacked is not None
    assert (made.path, made.arguments) == (made.unpacked.folder, {})
    assert (made.name, made.file) == ("Model", file)


def test_what_is_no_gguf_file_is_never_unpacked(tmp_path: Path) -> None:
    for source in (ModelSource.parse(str(tmp_path)), ModelSource.parse("org/model")):
        assert source.cached("bfloat16", tmp_path) is source
        assert source.unpack("bfloat16", tmp_path, Writer()) is source
