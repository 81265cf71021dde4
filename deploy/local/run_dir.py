"""The folder that keeps models and logs between starts."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specserve.settings import StartError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns errors of the file system into one sentence about the cache.

    Raises:
        StartError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(folder) from None
        raise StartError(
            f"{folder} cannot be used as the cache ({error.strerror}); "
            "set HOLDCOURSE_CACHE to a folder that can be written."
        ) from None


def no_space(folder: Path) -> StartError:
    """The sentence for a full disk."""
    return StartError(
        f"The disk of {folder} is full; "
        "free some space or set HOLDCOURSE_CACHE to a folder on another disk."
    )


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds a lock on the file, which ends with the process at the latest.

    Raises:
        StartError: another process holds it; `otherwise` is the sentence.
    """
    with explained(path.parent):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(otherwise) from None
        yield


@contextmanager
def run_folder(cache: Path, port: int) -> Iterator[Path]:
    """A folder for one run. Its logs stay after the run, until the next one on the same port.

    Raises:
        StartError: it cannot be written, or another run has it.
    """
    folder = cache / f"run-{port}"
    with locked(folder / "lock", f"Another start of Holdcourse on port {port} is under way."):
        with explained(cache):
            _remove(folder, "*.log", "*.conf")
        try:
            yield folder
        finally:
            _remove(folder, "*.conf")


def _remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()
