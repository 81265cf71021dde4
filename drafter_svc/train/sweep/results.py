"""What the runs of a screen measured, on disk and as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from drafter_svc.train.run.held_out import Measurement
from drafter_svc.train.run.run_folder import Position
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.sweep.arms import TrainingArm
from drafter_svc.train.sweep.shared_target import SweepContext


class Results:
    """``results.json`` and ``table.md`` in the out folder; ``runs`` are by their key."""

    def __init__(self, base: TrainSettings, school: SweepContext) -> None:
        self._folder = Path(base.out)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / "results.json"
        self._facts = {
            "target": school.target.name,
            "target_fingerprint": school.target.fingerprint,
            "documents": school.corpus.key,
            "held_out": len(school.corpus.held_out),
            "tokens": school.tokens,
            "torch": torch.__version__,
        }
        self.runs: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            try:
                self.runs = json.loads(self._file.read_text())["runs"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self._file} is damaged: remove it") from None

    def add(
        self, key: str, arm: TrainingArm, seed: int, position: Position, measured: Measurement
    ) -> None:
        """Keep a run, on disk too. Raises ``OSError``, what was there being intact."""
        settings = asdict(arm.settings) | {"seed": seed}
        for place in ("target", "data", "out", "init", "verifiers", "epochs", "minutes"):
            del settings[place]
        self.runs[key] = {
            "arm": arm.name,
            "changes": arm.changes,
            "seed": seed,
            "steps": position.steps,
            "tokens": position.tokens,
            "measured": asdict(measured),
            "settings": settings,
            "run": self._facts,
        }
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps({"runs": self.runs}, indent=1) + "\n")
        partial.replace(self._file)

    def write_table(self, keys: Mapping[str, Sequence[str]]) -> str:
        """The runs with these keys, by arm, as Markdown, which is also in ``table.md``."""
        rows = [_row(name, [self.runs[key] for key in runs]) for name, runs in keys.items()]
        steps = len(rows[0]) - 3
        heads = ["arm", "changed", *(f"top-1, step {k + 1}" for k in range(steps)), "length"]
        table = [heads, ["---"] * len(heads), *rows]
        text = "".join(f"| {' | '.join(row)} |\n" for row in table)
        (self._folder / "table.md").write_text(f"{text}\n{self._caption(keys)}\n")
        return text.rstrip()

    def _caption(self, keys: Mapping[str, Sequence[str]]) -> str:
        runs = [self.runs[key] for arm in keys.values() for key in arm]
        seeds = len({run["seed"] for run in runs})
        return (
            f"Held-out, teacher-forced share of positions at which drafter and target have the "
            f"same most likely token ({runs[0]['measured']['positions']} positions at step 1), and "
            f"acceptance length of greedy chains of {len(runs[0]['measured']['top1'])} on the "
            f"held-out text, bonus included: mean over {seeds} seeds and, behind ±, half of their "
            f"range. {runs[0]['tokens']} tokens in {runs[0]['steps']} steps each; target "
            f"{self._facts['target']}."
        )


def _row(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    columns = zip(*(run["measured"]["top1"] for run in runs), strict=True)
    changes = ", ".join(f"{key}={value}" for key, value in runs[0]["changes"].items())
    lengths = [run["measured"]["acceptance_length"] for run in runs]
    return [name, changes, *(_spread(column, 3) for column in columns), _spread(lengths, 3)]


def _spread(values: Sequence[float], digits: int) -> str:
    half = (max(values) - min(values)) / 2
    return f"{fmean(values):.{digits}f} ±{half:.{digits}f}"
