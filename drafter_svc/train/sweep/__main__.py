"""``python -m drafter_svc.train.sweep``: short runs of training arms, compared.

Every arm is trained from every seed for the same tokens, and measured on the same held-out text.
The arms of a seed learn in lockstep from the same forwards of the target. ``results.json`` and
``table.md`` are written to the out folder, the table is printed too. Runs that are in the results
already are not made again, and one that was stopped goes on.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Never

from tqdm import tqdm
from transformers import HfArgumentParser

from drafter_svc.train.data.documents import read_documents
from drafter_svc.train.run.run_folder import read_state, write_state
from drafter_svc.train.run.setup import make_corpus
from drafter_svc.train.run.signals import StopOnSignal, make_source
from drafter_svc.train.run.trainer import BAR, Interrupted
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.sweep.arms import TrainingArm, parse_arms
from drafter_svc.train.sweep.results import Results
from drafter_svc.train.sweep.shared_target import SharedTargetSweep, SweepContext
from drafter_svc.train.target.target import load_target

#: Chain steps that are measured.
STEPS = 5
_STOPPED = "stopped; the same command goes on from there"


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What to compare; the flags of ``drafter_svc.train`` give what all arms have in common."""

    arms: list[str] = field(
        metadata={"help": "'name' or 'name: setting=value, setting=value' of training's settings"}
    )
    seeds: int = field(default=2, metadata={"help": "runs of each arm"})
    tokens: int = field(default=60_000, metadata={"help": "of text in a run, prompts included"})

    def __post_init__(self) -> None:
        for name in ("seeds", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Sweep:
    """The runs of a screen that are not in ``results`` yet."""

    def __init__(
        self,
        base: TrainSettings,
        arms: list[TrainingArm],
        school: SweepContext,
        results: Results,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        available = sum(len(document.ids) for document in school.corpus.train)
        if available < school.tokens:
            raise ValueError(f"tokens is {school.tokens}, data has {available} to train on")
        self._base, self._arms, self._school = base, arms, school
        self._results, self._stopped = results, stopped

    def run(self, seeds: int) -> None:
        """Make the missing runs. Raises ``Interrupted`` after ``stopped`` has said so."""
        missing = {seed: self._missing(seed) for seed in range(seeds)}
        runs = sum(map(len, missing.values()))
        with tqdm(total=runs * self._school.tokens, bar_format=BAR) as bar:
            for seed, arms in missing.items():
                if arms:
                    self._run_seed(seed, arms, bar)

    def _missing(self, seed: int) -> list[TrainingArm]:
        keys = {arm.name: self._school.key(replace(arm.settings, seed=seed)) for arm in self._arms}
        return [arm for arm in self._arms if keys[arm.name] not in self._results.runs]

    def _run_seed(self, seed: int, arms: list[TrainingArm], bar: "tqdm[Never]") -> None:
        group = SharedTargetSweep(arms, seed, self._base, self._school)
        file = Path(self._base.out) / f"seed-{seed}.pt"
        if file.exists() and group.load_state_dict(read_state(file)):
            bar.update(min(group.position.tokens, self._school.tokens) * len(arms))
        saved = monotonic()
        for _ in group.train(bar.update):
            bar.set_postfix_str(f"seed {seed}, {group.position.tokens} tokens of {len(arms)} arms")
            if self._stopped():
                write_state(file, group.state_dict())
                raise Interrupted(_STOPPED)
            if monotonic() - saved > self._base.report_minutes * 60:
                write_state(file, group.state_dict())
                saved = monotonic()
        write_state(file, group.state_dict())
        for pupil, measured in group.measurements(STEPS):
            self._results.add(pupil.key, pupil.arm, seed, group.position, measured)
            if self._stopped():
                raise Interrupted(_STOPPED)
        file.unlink()


def screen(settings: SweepSettings, base: TrainSettings) -> str:
    """Run the screen. Returns its table.

    Raises ``ValueError``, ``OSError`` and ``FloatingPointError`` with one sentence, and
    ``Interrupted``.
    """
    arms = parse_arms(settings.arms, base)
    with ExitStack() as stack:
        target = load_target(base.target, base.device, layers=not base.verifiers)
        documents = read_documents(base.data, target.tokenizer, base.max_length)
        corpus = make_corpus(base, documents)
        school = SweepContext(target, make_source(base, target, stack), corpus, settings.tokens)
        results = Results(base, school)
        Sweep(base, arms, school, results, StopOnSignal()).run(settings.seeds)
    keys = {
        arm.name: [school.key(replace(arm.settings, seed=n)) for n in range(settings.seeds)]
        for arm in arms
    }
    return results.write_table(keys)


def main() -> int:
    """Run the command. Returns the exit code: 2 for unusable input, 130 when it was stopped."""
    parser = HfArgumentParser((SweepSettings, TrainSettings), description=__doc__)
    try:
        settings, base = parser.parse_args_into_dataclasses()
        print(screen(settings, base))
    except Interrupted as interrupted:
        print(f"drafter_svc.train.sweep: {interrupted}", file=sys.stderr)
        return 130
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"drafter_svc.train.sweep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
