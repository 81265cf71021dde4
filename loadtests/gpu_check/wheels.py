"""Wheels that are used as they are: unpacked in front of what the interpreter has installed.

In front, since what is there may be too old: what is given explicitly is what is meant.
"""

from __future__ import annotations

import os
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from loadtests.gpu_check.options import OptionError

# Where a wheel has files that go to other places of an installation.
_ROOTS = ("purelib", "platlib")
_OURS = "holdcourse"


def unpack(wheels: Path | None, folder: Path) -> list[str]:
    """Put wheels, and our own version where it is not installed, on the path of all processes.

    Returns the names of those that are for another interpreter or system: they are left out.

    Raises:
        OptionError: the folder has no wheel for this interpreter, or one that is none.
    """
    files = [] if wheels is None else sorted(wheels.glob("*.whl"))
    fitting = [file for file in files if _fits(file.name)]
    if wheels is not None and not fitting:
        raise OptionError(f"--wheels: {wheels} has no wheel for this interpreter.")
    for file in fitting:
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise OptionError(f"--wheels: {file} cannot be unpacked: {error}.") from error
    roots = [folder, *(root for name in _ROOTS for root in sorted(folder.glob(f"*.data/{name}")))]
    _tell_version(folder)
    paths = [str(root) for root in roots]
    sys.path[:0] = paths
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([inherited] if inherited else [])])
    return [file.name for file in files if file not in fitting]


def _fits(name: str) -> bool:
    """Whether this interpreter can import what a wheel of that name holds."""
    # transformers needs it, too.
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        tags = parse_wheel_filename(name)[-1]
    except InvalidWheelFilename:
        return False
    return not tags.isdisjoint(sys_tags())


def _tell_version(folder: Path) -> None:
    """Let the services find their version where this project is not installed."""
    try:
        metadata.version(_OURS)
    except metadata.PackageNotFoundError:
        info = folder / f"{_OURS}-0.dist-info"
        info.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {_OURS}\nVersion: 0+unknown\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
