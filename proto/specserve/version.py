"""The version of what runs."""

from __future__ import annotations

from importlib import metadata

UNKNOWN = "0+unknown"


def version() -> str:
    """That of the installed distribution; `UNKNOWN` where the sources run without one."""
    try:
        return metadata.version("holdcourse")
    except metadata.PackageNotFoundError:
        return UNKNOWN
