"""What a training run leaves on disk: the checkpoint, the log and the state to resume from."""

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from drafter_svc.train.measure import Measurement
from drafter_svc.train.settings import TrainSettings

# Settings that a resumed run may change.
_FREE = frozenset(
    {"target", "data", "out", "verifiers", "device", "epochs", "minutes", "learning_rate"}
    | {"warm_up", "clip", "report_minutes", "feature_cache_gib"}
)


@dataclass(slots=True)
class Position:
    """How far a run has come; ``tokens`` are taught tokens, ``seconds`` include the reports."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class RunFolder:
    """``checkpoint/``, ``log.csv`` and ``last.pt`` of one run, in ``settings.out``.

    ``key`` names the target and the documents: a run goes on with the same ones only.
    """

    def __init__(self, settings: TrainSettings, key: str) -> None:
        self._settings, self._key = settings, key
        self.path = Path(settings.out)
        self.path.mkdir(parents=True, exist_ok=True)
        self._last = self.path / "last.pt"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def log_file(self) -> Path:
        return self.path / "log.csv"

    def save(self, position: Position, optimizer: Mapping[str, Any]) -> None:
        """Replace ``last.pt`` in one step. Raises ``OSError``, the old one being intact."""
        state = {
            "position": asdict(position),
            "optimizer": optimizer,
            "settings": asdict(self._settings),
            "key": self._key,
        }
        partial = self._last.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
            partial.replace(self._last)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
            sentence = f"cannot write {self._last}: {reason}; the one before is intact"
            raise OSError(sentence) from None

    def load(self) -> tuple[Position, dict[str, Any]] | None:
        """(position, optimizer state) of the run that was here before, if there was one.

        Raises ``ValueError`` when that run had settings or data under which this one cannot go on.
        """
        if not self._last.exists():
            return None
        try:
            state = torch.load(self._last, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError) as error:
            raise ValueError(f"{self._last} is damaged: {error}") from None
        now = asdict(self._settings)
        # A setting that is younger than the run had its default in it.
        before = {f.name: f.default for f in fields(self._settings)} | state["settings"]
        changed = [n for n in now if n not in _FREE and before[n] != now[n]]
        if not changed and state["key"] != self._key:
            changed = ["target or data"]
        if changed:
            raise ValueError(
                f"{self._last} was made with another {', '.join(changed)}: "
                "keep the setting or give another out folder"
            )
        return Position(**state["position"]), state["optimizer"]

    def log(
        self,
        position: Position,
        progress: float,
        rate: float,
        losses: list[float],
        measured: Measurement,
    ) -> None:
        """Append a row to ``log.csv``; columns ending in ``_k`` belong to chain step k."""
        row: dict[str, float] = {
            "step": position.steps,
            "tokens": position.tokens,
            "seconds": round(position.seconds, 1),
            "progress": round(progress, 4),
            "learning_rate": round(rate, 8),
            "acceptance_length": round(measured.acceptance_length, 4),
            "draft_temperature": measured.draft_temperature,
        }
        for k, (top1, overlap) in enumerate(zip(measured.top1, measured.overlap, strict=True)):
            row[f"loss_{k}"] = round(losses[k], 4) if k < len(losses) else math.nan
            row[f"top1_{k}"] = round(top1, 4)
            row[f"overlap_{k}"] = round(overlap, 4)
        new = not self.log_file.exists()
        with self.log_file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
