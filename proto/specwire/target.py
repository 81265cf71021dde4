"""Where a target model is loaded from."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TargetSource:
    """A Hugging Face id, a folder, or one GGUF file, as `from_pretrained` takes it."""

    location: str
    gguf_file: str | None = None

    @classmethod
    def parse(cls, text: str) -> TargetSource:
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
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers' `from_pretrained`."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}
