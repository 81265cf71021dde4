"""The training run: lessons in, checkpoints and a log out, resumable at any step."""

import time
from collections.abc import Callable
from dataclasses import replace

from tqdm import tqdm

from drafter_svc.formats.checkpoint import save_checkpoint
from drafter_svc.train.data.documents import plan_batches
from drafter_svc.train.data.draft_vocab import coverage
from drafter_svc.train.objective.optim import chain_steps, learning_rate
from drafter_svc.train.run.data_schedule import DataSchedule
from drafter_svc.train.run.distill_batch import DistillBatch
from drafter_svc.train.run.held_out import Measurement, measure
from drafter_svc.train.run.learner import Learner
from drafter_svc.train.run.plot_curve import draw_curve
from drafter_svc.train.run.process_group import ProcessGroup
from drafter_svc.train.run.run_folder import Position, RunFolder, provenance
from drafter_svc.train.run.setup import Corpus, make_classroom, make_drafter
from drafter_svc.train.run.throughput import Meter, Throughput
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target.feature_source import FeatureSource
from drafter_svc.train.target.target import Target

# Chains are measured from every n-th position, and one step deeper than they are trained.
_MEASURED_STRIDE = 16
#: A progress bar with the time left.
BAR = "{percentage:5.1f}% |{bar:30}| {elapsed}<{remaining} {postfix}"


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
        world: ProcessGroup | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.target, self.corpus = settings, target, corpus
        self.world, self._stopped = world or ProcessGroup(), stopped
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
        self.course = DataSchedule(
            settings, corpus.train, self.classroom, self.cache, self.world, self.position
        )
        self._examined: list[DistillBatch] = []
        # Of this process: what it trained on, and how long without the reports.
        self._rows, self._busy = 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the run that is done: of its tokens or of its time, whichever is further."""
        limit = self.settings.minutes * 60
        timed = self.position.seconds / limit if limit else 0.0
        return max(self.position.tokens / self.course.total, timed)

    @property
    def throughput(self) -> Throughput:
        """Of this process since it was started, reports left out."""
        flops = self.classroom.meter.flops
        return Throughput(self._rows / max(self._busy, 1e-9), flops / max(self._rows, 1))

    def run(self) -> Measurement | None:
        """Train to the end. Returns the last measurement, in the leading process.

        Raises ``Interrupted`` after ``stopped`` has said so.
        """
        started = time.monotonic() - self.position.seconds
        reported = resumed = time.monotonic()
        losses: list[float] = []
        hidden = not self.world.leads
        with tqdm(
            total=1.0, initial=min(1.0, self.progress), bar_format=BAR, disable=hidden
        ) as bar:
            for tokens, lessons in self.course.updates():
                losses = self.step(tokens, lessons)
                seconds, stop = self.world.largest(
                    [time.monotonic() - started, float(self._stopped())],
                    self.learner.draft_ids.device,
                )
                self.position.seconds = seconds
                self._busy += time.monotonic() - resumed
                resumed = time.monotonic()
                bar.set_postfix_str(f"{self.position.tokens} tokens, loss {losses[0]:.3f}")
                bar.update(min(1.0, self.progress) - bar.n)
                if stop:
                    self._interrupt()
                if self.progress >= 1:
                    break
                due = time.monotonic() - reported > self.settings.report_minutes * 60
                if due and self.world.leads:
                    self.report(losses)
                    reported = resumed = time.monotonic()
        return self.report(losses) if self.world.leads else None

    def step(self, tokens: int, lessons: list[DistillBatch]) -> list[float]:
        """Make an update over ``tokens`` taught tokens, this process's share being ``lessons``.

        Returns the losses of its last lesson.
        """
        steps = chain_steps(self.settings.chain_steps, self.progress)
        self.position.steps += 1
        rows = sum(len(lesson.batch.ids) for lesson in lessons)
        with self.classroom.meter.work(f"update of {steps} steps", rows):
            losses = self.learner.learn(lessons, steps, phase=self.position.steps, rate=self.rate)
        self._rows += rows
        self.position.tokens += tokens
        return losses

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self.settings.learning_rate, self.progress, self.settings.warm_up)

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
            training=provenance(
                self.settings, self.target.name, self.position, self.coverage, measured
            ),
        )
        self._write_checkpoint()
        self.folder.save(self.position, self.learner.optimizer.state_dict())
        self.folder.log(self.position, self.progress, self.rate, losses, measured, self.throughput)
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

    def _examination(self) -> list[DistillBatch]:
        """The held-out documents with the target's states, which stay in memory."""
        if not self._examined:
            documents, classroom = self.corpus.held_out, replace(self.classroom, meter=Meter())
            lengths = [len(document.ids) for document in documents]
            for group in plan_batches(lengths, self.settings.batch_tokens, self.settings.seed):
                lesson = classroom.prepare([documents[index] for index in group])
                self._examined.append(lesson)
        return self._examined
