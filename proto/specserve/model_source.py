"""Where a target model is loaded from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specserve.gguf_cache import UnpackedGguf, find_unpacked_gguf, unpack_gguf


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A Hugging Face id, a folder, or one GGUF file, which may be `unpacked` in the cache."""

    location: str
    gguf_file: str | None = None
    unpacked: UnpackedGguf | None = None

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Read what a user wrote.

        Raises:
            ValueError: an empty text, or a path that does not exist.
        """
        path = Path(text)
        with contextlib.suppress(RuntimeError):  # ~user of a user that does not exist
            path = path.expanduser()
        if not text:
            raise ValueError("target: give a Hugging Face id, a folder, or a .gguf file.")
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ValueError(f"target: there is no file {text}.")
            return cls(str(path.parent), path.name)
        if path.is_dir():
            return cls(str(path))
        if text.startswith((".", "/", "~")):
            raise ValueError(f"target: there is no folder {text}.")
        return cls(text)

    @property
    def name(self) -> str:
        """The name that people see."""
        return Path(self.gguf_file).stem if self.gguf_file else self.location.rstrip("/")

    @property
    def file(self) -> Path | None:
        """The GGUF file, None where the target is none."""
        return Path(self.location, self.gguf_file) if self.gguf_file else None

    @property
    def path(self) -> str:
        """What transformers' `from_pretrained` is to read, with `arguments`."""
        return self.unpacked.folder if self.unpacked else self.location

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers' `from_pretrained`."""
        return {"gguf_file": self.gguf_file} if self.gguf_file and not self.unpacked else {}

    def cached(self, dtype: str, cache: Path) -> ModelSource:
        """The same target, unpacked in this dtype where the cache folder has it so."""
        found = self.file and find_unpacked_gguf(self.file, dtype, cache)
        return replace(self, unpacked=found) if found else self

    def unpack(self, dtype: str, cache: Path, write: Callable[[Path], str]) -> ModelSource:
        """The same target, unpacked if it is a GGUF file; see `gguf_cache.unpack_gguf`."""
        if self.file is None:
            return self
        return replace(self, unpacked=unpack_gguf(self.file, dtype, cache, write))
