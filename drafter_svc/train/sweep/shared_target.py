"""Drafters of several training arms that learn from the same lessons, in lockstep."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from drafter_svc.train.data.documents import Document, plan_batches
from drafter_svc.train.objective.optim import chain_steps, learning_rate
from drafter_svc.train.run.distill_batch import DistillBatch, TargetFeatures
from drafter_svc.train.run.held_out import Measurement, measure
from drafter_svc.train.run.learner import Learner
from drafter_svc.train.run.process_group import ProcessGroup
from drafter_svc.train.run.run_folder import Position
from drafter_svc.train.run.setup import Corpus, make_drafter
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.sweep.arms import TrainingArm
from drafter_svc.train.target.feature_source import FeatureSource
from drafter_svc.train.target.target import Target

# Settings on which what is learned does not depend. A screen has its length in tokens.
_NO_MATTER = frozenset(
    {"target", "data", "out", "verifiers", "device", "epochs", "minutes", "report_minutes"}
    | {"feature_cache_gib"}
)
_MEASURED_STRIDE = 4


@dataclass(frozen=True, slots=True)
class SweepContext:
    """What all drafters of a screen have in common: a target, documents, tokens to learn from."""

    target: Target
    source: FeatureSource
    corpus: Corpus
    tokens: int

    def key(self, settings: TrainSettings) -> str:
        """Names the run that these settings would make."""
        kept = {name: v for name, v in asdict(settings).items() if name not in _NO_MATTER}
        facts = [kept, self.target.fingerprint, self.corpus.key, self.tokens]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class SweepRun:
    """A drafter that is trained as one arm says, from one seed."""

    def __init__(self, arm: TrainingArm, seed: int, school: SweepContext) -> None:
        self.arm, self.settings = arm, replace(arm.settings, seed=seed)
        self.key = school.key(self.settings)
        self._target = school.target
        drafter, draft_ids = make_drafter(self.settings, school.target, school.corpus)
        self.learner = Learner(self.settings, school.target, drafter, draft_ids, ProcessGroup())

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return self.learner.drafter.config.aux_layers

    def learn(self, lessons: Sequence[DistillBatch], progress: float, phase: int) -> None:
        """Make update number ``phase`` when the share ``progress`` of the run is done."""
        settings = self.settings
        rate = learning_rate(settings.learning_rate, progress, settings.warm_up)
        steps = chain_steps(settings.chain_steps, progress)
        try:
            self.learner.learn(lessons, steps, phase=phase, rate=rate)
        except FloatingPointError as error:
            raise FloatingPointError(f"arm {self.arm.name}: {error}") from None

    def measure(self, lessons: Sequence[DistillBatch], steps: int) -> Measurement:
        return measure(
            self.learner.drafter,
            self._target.embedding,
            self._target.head,
            self.learner.draft_ids,
            lessons,
            steps=steps,
            stride=_MEASURED_STRIDE,
            # The search for t_d would take as long as all the rest.
            temperatures=[1.0],
        )


class SharedTargetSweep:
    """One pupil for each arm, all of one seed, which share every forward of the target.

    The seed is that of the weights and of the order of the documents. ``position`` counts tokens
    of text, prompts included.
    """

    def __init__(
        self, arms: Sequence[TrainingArm], seed: int, base: TrainSettings, school: SweepContext
    ) -> None:
        self.pupils = [SweepRun(arm, seed, school) for arm in arms]
        self.position = Position()
        self._seed, self._base, self._school = seed, base, school
        self._layers = sorted({layer for pupil in self.pupils for layer in pupil.aux_layers})
        self._classroom = TargetFeatures(
            school.source,
            tuple(self._layers),
            school.target.head,
            prompts=any(arm.settings.teach_prompts for arm in arms),
            totals=any(arm.settings.loss == "lk" for arm in arms),
        )

    def train(self, advance: Callable[[int], object]) -> Iterator[None]:
        """Go on to the end, stopping after each update.

        ``advance`` gets the tokens of each pupil's update, without those beyond the end.
        """
        documents = self._school.corpus.train
        lengths = [len(document.ids) for document in documents]
        groups = plan_batches(lengths, self._base.batch_tokens, self._seed)
        size, position = self._base.accumulate, self.position
        ahead_of_us = islice(groups, position.steps * size, None)
        while position.tokens < self._school.tokens and (update := list(islice(ahead_of_us, size))):
            lessons = [self._prepare([documents[at] for at in group]) for group in update]
            tokens = sum(len(lesson.batch.ids) for lesson in lessons)
            left = self._school.tokens - position.tokens
            progress = position.tokens / self._school.tokens
            position.steps += 1
            for pupil in self.pupils:
                pupil.learn(self._seen_by(pupil, lessons), progress, position.steps)
                advance(min(tokens, left))
            position.tokens += tokens
            yield

    def measurements(self, steps: int) -> Iterator[tuple[SweepRun, Measurement]]:
        """Each pupil on the held-out documents, from every fourth answer position."""
        documents = self._school.corpus.held_out
        lengths = [len(document.ids) for document in documents]
        groups = plan_batches(lengths, self._base.batch_tokens, 0)
        lessons = [self._prepare([documents[at] for at in group]) for group in groups]
        for pupil in self.pupils:
            yield pupil, pupil.measure(self._seen_by(pupil, lessons), steps)

    def state_dict(self) -> dict[str, Any]:
        pupils = {pupil.key: pupil.learner.optimizer.state_dict() for pupil in self.pupils}
        return {"position": asdict(self.position), "pupils": pupils}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Take up an earlier state, if it knows all pupils. Returns whether it does."""
        saved = state["pupils"]
        if any(pupil.key not in saved for pupil in self.pupils):
            return False
        for pupil in self.pupils:
            pupil.learner.optimizer.load_state_dict(saved[pupil.key])
        self.position = Position(**state["position"])
        return True

    def _prepare(self, documents: Sequence[Document]) -> DistillBatch:
        return self._classroom.prepare(documents)

    def _seen_by(self, pupil: SweepRun, lessons: Sequence[DistillBatch]) -> list[DistillBatch]:
        """Lessons with the states that the pupil reads, in their order."""
        wanted = [self._layers.index(layer) for layer in pupil.aux_layers]
        return [
            replace(lesson, features=_chunks(lesson.features, len(self._layers), wanted))
            for lesson in lessons
        ]


def _chunks(features: torch.Tensor, count: int, wanted: list[int]) -> torch.Tensor:
    if wanted == list(range(count)):
        return features
    chunks = features.chunk(count, dim=1)
    return torch.cat([chunks[at] for at in wanted], dim=1)
