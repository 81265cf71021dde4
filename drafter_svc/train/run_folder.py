"""What a training run leaves on disk: the checkpoint, the log and the state to resume from."""

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from drafter_svc.train.measure import Measurement
from drafter_svc.train.settings import TrainSettings

# Settings that a resumed run must share with the run before it.
_FIXED = ("data", "seed", "held_out", "max_length", "batch_tokens", "draft_vocab", "chain_steps")


@dataclass(slots=True)
class Position:
    """How far a run has come; ``tokens`` are answer tokens, ``seconds`` include the reports."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class RunFolder:
    """``checkpoint/``, ``log.csv`` and ``last.pt`` of one run, in ``settings.out``."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._path = Path(settings.out)
        self._path.mkdir(parents=True, exist_ok=True)
        self._last = self._path / "last.pt"

    @property
    def checkpoint(self) -> Path:
        return self._path / "checkpoint"

    def save(self, position: Position, optimizer: Mapping[str, Any]) -> None:
        """Replace ``last.pt`` in one step."""
        state = {
            "position": asdict(position),
            "optimizer": optimizer,
            "settings": asdict(self._settings),
        }
        partial = self._last.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._last)

    def load(self) -> tuple[Position, dict[str, Any]] | None:
        """(position, optimizer state) of the run that was here before, if there was one.

        Raises ``ValueError`` when that run had settings under which this one cannot go on.
        """
        if not self._last.exists():
            return None
        state = torch.load(self._last, weights_only=True)
        now = asdict(self._settings)
        changed = [name for name in _FIXED if state["settings"][name] != now[name]]
        if changed:
            raise ValueError(
                f"{self._last} was made with another {', '.join(changed)}: "
                "keep the setting or give another out folder"
            )
        return Position(**state["position"]), state["optimizer"]

    def log(
        self, position: Position, progress: float, losses: list[float], measured: Measurement
    ) -> None:
        """Append a row to ``log.csv``; columns ending in ``_k`` belong to chain step k."""
        row: dict[str, float] = {
            "step": position.steps,
            "tokens": position.tokens,
            "seconds": round(position.seconds, 1),
            "progress": round(progress, 4),
            "acceptance_length": round(measured.acceptance_length, 4),
        }
        for step in range(self._settings.chain_steps):
            row[f"loss_{step}"] = round(losses[step], 4) if step < len(losses) else math.nan
        for step, (top1, overlap) in enumerate(zip(measured.top1, measured.overlap, strict=True)):
            row[f"top1_{step}"] = round(top1, 4)
            row[f"overlap_{step}"] = round(overlap, 4)
        path = self._path / "log.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
