"""A measurement's JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests.common.provenance import provenance
from loadtests.common.settings import ReportSettings


class ReportFile:
    """Provenance, arguments, all runs and, at the end, the summary.

    The file is written anew after each run, so that whatever ends the program, it holds what had
    been measured. Without a path nothing is written.
    """

    def __init__(self, settings: ReportSettings, model: Mapping[str, Any]) -> None:
        self._path = Path(settings.output) if settings.output else None
        self._parts: dict[str, Any] = {
            "provenance": provenance(),
            "arguments": settings.model_dump(exclude={"api_key"}),
            "model": model,
        }
        self._runs: list[str] = []

    def tell(self, **facts: Any) -> None:
        """Add top-level entries."""
        self._parts |= facts

    def add(self, run: Any) -> None:
        """Add a run, a dataclass, to the file."""
        if self._path is not None:
            self._runs.append(json.dumps(asdict(run)))
            self._write(self._path)

    def finish(self, summary: Any, *, complete: bool) -> None:
        """Add the summary, a dataclass, and whether all was measured that was asked for."""
        self.tell(complete=complete, summary=asdict(summary))
        if self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        entries = [f'"{name}": {json.dumps(value)}' for name, value in self._parts.items()]
        runs = ",\n".join(self._runs)
        entries.append(f'"runs": [\n{runs}\n]')
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
        partial.replace(path)
