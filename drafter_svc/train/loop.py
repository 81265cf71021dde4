"""The training run: lessons in, checkpoints and a log out, resumable at any step."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from typing import Any

import torch
from tqdm import tqdm

from drafter_svc.checkpoint import save_checkpoint
from drafter_svc.train.curve import draw_curve
from drafter_svc.train.data import Document, plan_batches
from drafter_svc.train.learner import Learner
from drafter_svc.train.lesson import Lesson, ahead
from drafter_svc.train.measure import Measurement, measure
from drafter_svc.train.optim import chain_steps, learning_rate
from drafter_svc.train.run_folder import Position, RunFolder
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.setup import Corpus, make_classroom, make_drafter
from drafter_svc.train.source import FeatureSource
from drafter_svc.train.target import Target
from drafter_svc.train.vocab import coverage
from drafter_svc.train.world import World

# Chains are measured from every n-th position, and one step deeper than they are trained.
_MEASURED_STRIDE = 16
_BAR = "{percentage:5.1f}% |{bar:30}| {elapsed}<{remaining} {postfix}"


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; the message says how to go on."""


class Trainer:
    """Trains one drafter for ``target``; a run found in ``settings.out`` is continued.

    Everything random derives from the seed and the position, so a run that is stopped and resumed
    takes the same steps as one that was not (unless ``minutes`` ends it). ``stopped`` is asked
    after each step. Raises ``ValueError`` for settings that do not fit what is there.
    """

    def __init__(
        self,
        settings: TrainSettings,
        target: Target,
        source: FeatureSource,
        corpus: Corpus,
        world: World | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.target, self.corpus = settings, target, corpus
        self.world, self._stopped = world or World(), stopped
        if settings.accumulate % self.world.size:
            raise ValueError(
                f"accumulate is {settings.accumulate}, not a multiple of the "
                f"{self.world.size} processes"
            )
        self.position = Position()
        self.folder = RunFolder(settings, f"{target.fingerprint} {corpus.key}")
        before = self.folder.load()
        drafter, draft_ids = make_drafter(settings, target, corpus)
        self.coverage = coverage(corpus.held_out, draft_ids)
        self.learner = Learner(settings, target, drafter, draft_ids, self.world)
        if before:
            self.position, state = before
            self.learner.optimizer.load_state_dict(state)
        cache_folder = self.folder.path / f"features-{self.world.rank}"
        self.classroom, self.cache = make_classroom(
            settings, target, source, drafter.config, corpus, cache_folder
        )
        self._epoch_tokens = sum(map(self._taught, corpus.train))
        self._examined: list[Lesson] = []
        self._tokens: deque[int] = deque()
        self._cores = torch.get_num_threads()

    @property
    def total(self) -> float:
        """Taught tokens of the whole run."""
        return self.settings.epochs * self._epoch_tokens

    @property
    def progress(self) -> float:
        """Share of the run that is done: of its tokens or of its time, whichever is further."""
        limit = self.settings.minutes * 60
        timed = self.position.seconds / limit if limit else 0.0
        return max(self.position.tokens / self.total, timed)

    def run(self) -> Measurement | None:
        """Train to the end. Returns the last measurement, in the leading process.

        Raises ``Interrupted`` after ``stopped`` has said so.
        """
        started = time.monotonic() - self.position.seconds
        reported = time.monotonic()
        losses: list[float] = []
        hidden = not self.world.leads
        with tqdm(
            total=1.0, initial=min(1.0, self.progress), bar_format=_BAR, disable=hidden
        ) as bar:
            for lessons in self.lessons():
                losses = self.step(lessons)
                seconds, stop = self.world.largest(
                    [time.monotonic() - started, float(self._stopped())],
                    self.learner.draft_ids.device,
                )
                self.position.seconds = seconds
                bar.set_postfix_str(f"{self.position.tokens} tokens, loss {losses[0]:.3f}")
                bar.update(min(1.0, self.progress) - bar.n)
                if stop:
                    self._interrupt()
                if self.progress >= 1:
                    break
                due = time.monotonic() - reported > self.settings.report_minutes * 60
                if due and self.world.leads:
                    self.report(losses)
                    reported = time.monotonic()
        return self.report(losses) if self.world.leads else None

    def step(self, lessons: list[Lesson]) -> list[float]:
        """Make an update from this process's share of it. Returns the losses of its last lesson."""
        position, settings = self.position, self.settings
        steps = chain_steps(settings.chain_steps, self.progress)
        position.steps += 1
        losses = self.learner.learn(lessons, steps, phase=position.steps, rate=self.rate)
        position.tokens += self._tokens.popleft()
        return losses

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self.settings.learning_rate, self.progress, self.settings.warm_up)

    def lessons(self) -> Iterator[list[Lesson]]:
        """This process's lessons of each update, from the current position on.

        While the target works in this process, it and the drafter have half of the cores each.
        """
        self._tokens.clear()
        half = max(1, self._cores // 2)
        mine = range(self.world.rank, self.settings.accumulate, self.world.size)
        prepared = ahead(self._prepare, self._groups(mine), threads=half, share=self._shares)
        while True:
            torch.set_num_threads(half if self._shares() else self._cores)
            yield list(islice(prepared, len(mine)))

    def _shares(self) -> bool:
        """Whether the target's work in this process is worth half of the cores."""
        if self.settings.verifiers or self.settings.device != "cpu":
            return False
        first = self.position.tokens < self._epoch_tokens
        return first or self.cache is None or not self.cache.holds_all

    def _groups(self, mine: range) -> Iterator[list[int] | None]:
        """This process's batches of every update to come, epoch after epoch, without end.

        A None ends an epoch: what one epoch puts into the cache is there when the next one looks.
        """
        lengths = [len(document.ids) for document in self.corpus.train]
        taught = [self._taught(document) for document in self.corpus.train]
        size = self.settings.accumulate
        epochs = (
            list(plan_batches(lengths, self.settings.batch_tokens, seed))
            for seed in count(self.settings.seed)
        )
        groups = ((group, group is epoch[-1]) for epoch in epochs for group in epoch)
        later = islice(groups, self.position.steps * size, None)
        while update := list(islice(later, size)):
            self._tokens.append(sum(taught[index] for group, _ in update for index in group))
            for at, (group, last) in enumerate(update):
                if at in mine:
                    yield group
                if last:
                    yield None

    def _taught(self, document: Document) -> int:
        """Tokens of a document that count."""
        if self.settings.teach_prompts:
            return len(document.ids) - 1
        return sum(document.answer[1:])

    def _prepare(self, group: list[int]) -> Lesson:
        return self.classroom.prepare([self.corpus.train[index] for index in group], group)

    def _interrupt(self) -> None:
        if self.world.leads:
            self._write_checkpoint()
            self.folder.save(self.position, self.learner.optimizer.state_dict())
        raise Interrupted(
            f"stopped after {self.position.tokens} tokens; the same command goes on from there"
        )

    def report(self, losses: list[float]) -> Measurement:
        """Measure on held-out text and write the run's folder."""
        measured = measure(
            self.learner.drafter,
            self.target.embedding,
            self.target.head,
            self.learner.draft_ids,
            self._examination(),
            steps=max(self.settings.chain_steps) + 1,
            stride=_MEASURED_STRIDE,
        )
        self.learner.drafter.config = replace(
            self.learner.drafter.config,
            draft_temperature=measured.draft_temperature,
            training=self._provenance(measured),
        )
        self._write_checkpoint()
        self.folder.save(self.position, self.learner.optimizer.state_dict())
        self.folder.log(self.position, self.progress, self.rate, losses, measured)
        draw_curve(self.folder.log_file, self.folder.path / "curve.svg")
        if self.cache and self.cache.problem:
            tqdm.write(self.cache.problem)
        return measured

    def _write_checkpoint(self) -> None:
        folder = self.folder.checkpoint
        try:
            save_checkpoint(folder, self.learner.drafter, self.learner.draft_ids)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(f"cannot write {folder}: {reason}; the one before is intact") from None

    def _examination(self) -> list[Lesson]:
        """The held-out documents with the target's states, which stay in memory."""
        if not self._examined:
            documents = self.corpus.held_out
            lengths = [len(document.ids) for document in documents]
            for group in plan_batches(lengths, self.settings.batch_tokens, self.settings.seed):
                lesson = self.classroom.prepare([documents[index] for index in group])
                self._examined.append(lesson)
        return self._examined

    def _provenance(self, measured: Measurement) -> dict[str, Any]:
        settings = asdict(self.settings)
        for place in ("target", "data", "out", "init", "verifiers"):
            del settings[place]
        return {
            "target": self.target.name,
            "tokens": self.position.tokens,
            "steps": self.position.steps,
            "seconds": round(self.position.seconds),
            "settings": settings,
            "held_out": {
                "positions": measured.positions,
                "vocabulary_coverage": round(self.coverage, 4),
                "acceptance_length": round(measured.acceptance_length, 4),
                "top1_per_step": [round(value, 4) for value in measured.top1],
                "overlap_per_step": [round(value, 4) for value in measured.overlap],
            },
        }
