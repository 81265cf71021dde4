"""What a training run leaves on disk: the checkpoint, the log and the state to resume from."""

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from drafter_svc.train.run.held_out import Measurement
from drafter_svc.train.run.throughput import Throughput
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
        write_state(self._last, state)

    def load(self) -> tuple[Position, dict[str, Any]] | None:
        """(position, optimizer state) of the run that was here before, if there was one.

        Raises ``ValueError`` when that run had settings or data under which this one cannot go on.
        """
        if not self._last.exists():
            return None
        state = read_state(self._last)
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
        throughput: Throughput,
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
            "tokens_per_second": round(throughput.tokens_per_second, 1),
            "gflop_per_token": round(throughput.flops_per_token / 1e9, 4),
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


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the file in one step. Raises ``OSError``, the old one being intact."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise OSError(f"cannot write {path}: {reason}; the one before is intact") from None


def read_state(path: Path) -> dict[str, Any]:
    """What ``write_state`` wrote. Raises ``ValueError`` when the file is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return state


def provenance(
    settings: TrainSettings,
    target: str,
    position: Position,
    coverage: float,
    measured: Measurement,
) -> dict[str, Any]:
    """How a drafter was made, for its config: settings without places, length, held-out values."""
    kept = asdict(settings)
    for place in ("target", "data", "out", "init", "verifiers"):
        del kept[place]
    return {
        "target": target,
        "tokens": position.tokens,
        "steps": position.steps,
        "seconds": round(position.seconds),
        "settings": kept,
        "held_out": {
            "positions": measured.positions,
            "vocabulary_coverage": round(coverage, 4),
            "acceptance_length": round(measured.acceptance_length, 4),
            "top1_per_step": [round(value, 4) for value in measured.top1],
            "overlap_per_step": [round(value, 4) for value in measured.overlap],
        },
    }
