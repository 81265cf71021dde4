"""GGUF files unpacked into folders of Hugging Face's layout, once, in the user's cache.

A GGUF file's metadata is read by Python code, value by value and several times in a start, which
takes far longer than reading the weights themselves.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

_RECORD = "holdcourse.json"
_FORMAT = 3
_SAMPLE = 1 << 20


@dataclass(frozen=True, slots=True)
class UnpackedGguf:
    """A folder that `from_pretrained` reads, and the name of its input embeddings."""

    folder: str
    embedding: str


def find_unpacked_gguf(file: Path, dtype: str, cache: Path) -> UnpackedGguf | None:
    """What `unpack_gguf` made of this file; None where it is missing, outdated or damaged.

    Damage is told by the files' names, sizes and first MiB.
    """
    folder = _folder(file, dtype, cache)
    try:
        record = json.loads((folder / _RECORD).read_text())
        whole = record["origin"] == _origin(file, dtype) and record["files"] == _seals(folder)
        return UnpackedGguf(str(folder), str(record["embedding"])) if whole else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def unpack_gguf(file: Path, dtype: str, cache: Path, write: Callable[[Path], str]) -> UnpackedGguf:
    """Unpack a file in weights of `dtype`, unless another process has done so or is about to.

    `write` fills an empty folder and returns the name of the tensor of input embeddings; what it
    raises is raised.

    Raises:
        OSError: the cache cannot be written.
    """
    folder = _folder(file, dtype, cache)
    scratch = folder.with_name(f"{folder.name}.part")
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := find_unpacked_gguf(file, dtype, cache)) is not None:
            return found
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        try:
            scratch.mkdir()
            origin = _origin(file, dtype)
            embedding = write(scratch)
            record = {"origin": origin, "embedding": embedding, "files": _seals(scratch)}
            (scratch / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
            _sync(scratch)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return UnpackedGguf(str(folder), embedding)


def _folder(file: Path, dtype: str, cache: Path) -> Path:
    """One for each file and dtype, so that what is outdated is replaced."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    return cache / "targets" / f"{file.stem}-{dtype}-{digest}"


def _origin(file: Path, dtype: str) -> dict[str, Any]:
    """All that an unpacked file depends on."""
    stat = file.stat()
    return {
        "file": str(file.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "dtype": dtype,
        "format": _FORMAT,
        **{library: version(library) for library in ("gguf", "transformers")},
    }


def _seals(folder: Path) -> dict[str, list[Any]]:
    """By name, size and digest of the first MiB of the files in a folder but the record."""
    seals: dict[str, list[Any]] = {}
    for path in folder.iterdir():
        if path.name != _RECORD:
            with path.open("rb") as file:
                digest = hashlib.sha256(file.read(_SAMPLE)).hexdigest()
            seals[path.name] = [path.stat().st_size, digest]
    return seals


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
