"""Where this user keeps what a second start needs not make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(text: str) -> Path:
    """The folder that a user named, by default holdcourse in the user's cache."""
    if text:
        return Path(text).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "holdcourse"
