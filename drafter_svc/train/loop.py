"""The training run: lessons in, checkpoints and a log out, resumable at any report."""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from drafter_svc.checkpoint import save_checkpoint
from drafter_svc.train.data import (
    Batch,
    Conversation,
    batches,
    collate,
    plan_batches,
    read_conversations,
    split,
)
from drafter_svc.train.initial import drafter_config, initial_drafter
from drafter_svc.train.loss import Teacher, chain_loss, teach
from drafter_svc.train.measure import Measurement, measure
from drafter_svc.train.optim import MasterOptimizer, chain_steps, learning_rate
from drafter_svc.train.run_folder import Position, RunFolder
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target import Target
from drafter_svc.train.ttt import chain_columns, unroll
from drafter_svc.train.vocab import choose_draft_vocabulary, count_tokens, coverage

# Lessons that the target prepares in advance.
_AHEAD = 2
# Chains are measured from every n-th position, and one step deeper than they are trained.
_MEASURED_STRIDE = 16
_BAR = "{percentage:5.1f}% |{bar:30}| {elapsed}<{remaining} {postfix}"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch with what the target has to say about it."""

    batch: Batch
    features: Tensor
    teacher: Teacher


class Trainer:
    """Trains one drafter for ``target``; a run found in ``settings.out`` is continued.

    Everything random derives from the seed and the position, so a run that is stopped at a report
    and resumed takes the same steps as one that was not (unless ``minutes`` ends it). Raises
    ``ValueError`` when there is nothing to train on.
    """

    def __init__(
        self, settings: TrainSettings, target: Target, conversations: list[Conversation]
    ) -> None:
        self.settings, self.target = settings, target
        self.train, held_out = split(conversations, settings.held_out, settings.seed)
        if not self.train:
            raise ValueError(
                f"held_out is {settings.held_out} but data has {len(conversations)} conversations"
            )
        self.held_out = list(batches(held_out, settings.batch_tokens, settings.seed))
        counts = count_tokens(self.train, target.model.config.vocab_size)
        size = min(settings.draft_vocab, len(counts))
        end = target.tokenizer.eos_token_id
        self.draft_ids = choose_draft_vocabulary(counts, size, always=[end])
        self.coverage = coverage(held_out, self.draft_ids)
        config = drafter_config(target, size)
        self.drafter = initial_drafter(config, target, self.draft_ids, settings.seed)
        self.optimizer = MasterOptimizer(self.drafter, clip=settings.clip)
        self.total = settings.epochs * sum(sum(c.answer) for c in self.train)
        self.position = Position()
        self.folder = RunFolder(settings)
        if before := self.folder.load():
            self.position, state = before
            self.optimizer.load_state_dict(state)

    @property
    def progress(self) -> float:
        """Share of the run that is done: of its tokens or of its time, whichever is further."""
        limit = self.settings.minutes * 60
        timed = self.position.seconds / limit if limit else 0.0
        return max(self.position.tokens / self.total, timed)

    def run(self) -> Measurement:
        """Train to the end. Returns the last measurement."""
        started = time.monotonic() - self.position.seconds
        reported = time.monotonic()
        losses: list[float] = []
        with tqdm(total=1.0, initial=min(1.0, self.progress), bar_format=_BAR) as bar:
            for lesson in self._lessons():
                losses = self._step(lesson)
                self.position.seconds = time.monotonic() - started
                bar.set_postfix_str(f"{self.position.tokens} tokens, loss {losses[0]:.3f}")
                bar.update(min(1.0, self.progress) - bar.n)
                if self.progress >= 1:
                    break
                if time.monotonic() - reported > self.settings.report_minutes * 60:
                    self._report(losses)
                    reported = time.monotonic()
        return self._report(losses)

    def _lessons(self) -> Iterator[Lesson]:
        """Lessons from the current position on; the target works ahead of the drafter.

        Each of the two threads runs its operators on half of the cores: fewer barriers than two
        teams of all cores, which matters most when other processes are running.
        """
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            ahead: deque[Future[Lesson]] = deque()
            for group in islice(self._groups(), self.position.steps, None):
                batch = collate([self.train[index] for index in group])
                ahead.append(pool.submit(self._prepare, batch))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()

    def _groups(self) -> Iterator[list[int]]:
        """Batches of the whole run, epoch after epoch, without end."""
        lengths = [len(conversation.ids) for conversation in self.train]
        for seed in count(self.settings.seed):
            yield from plan_batches(lengths, self.settings.batch_tokens, seed)

    def _prepare(self, batch: Batch) -> Lesson:
        features, final = self.target.capture(batch.ids, self.drafter.config.aux_layers)
        return Lesson(batch, features, teach(batch, final, self.target.head, self.draft_ids))

    def _step(self, lesson: Lesson) -> list[float]:
        """Learn one lesson. Returns the mean loss of each chain step."""
        settings, position, batch = self.settings, self.position, lesson.batch
        position.steps += 1
        position.tokens += int(batch.answer.sum())
        chain = unroll(
            self.drafter,
            self.target.embedding,
            batch,
            lesson.features,
            steps=chain_steps(settings.chain_steps, self.progress),
            columns=chain_columns(batch, settings.stride, position.steps),
        )
        loss, means = chain_loss(self.drafter, chain, lesson.teacher)
        if loss.requires_grad:
            torch.autograd.backward(loss)
            rate = learning_rate(settings.learning_rate, self.progress, settings.warm_up)
            self.optimizer.step(rate)
        return means

    def _report(self, losses: list[float]) -> Measurement:
        """Measure on held-out text and write the run's folder."""
        measured = measure(
            self.drafter,
            self.target,
            self.draft_ids,
            self.held_out,
            steps=self.settings.chain_steps + 1,
            stride=_MEASURED_STRIDE,
        )
        self.drafter.config = replace(
            self.drafter.config,
            draft_temperature=measured.draft_temperature,
            training=self._provenance(measured),
        )
        save_checkpoint(self.folder.checkpoint, self.drafter, self.draft_ids)
        self.folder.log(self.position, self.progress, losses, measured)
        self.folder.save(self.position, self.optimizer.state_dict())
        return measured

    def _provenance(self, measured: Measurement) -> dict[str, Any]:
        settings = asdict(self.settings)
        for path in ("target", "data", "out"):
            del settings[path]
        return {
            "target": self.target.name,
            "answer_tokens": self.position.tokens,
            "steps": self.position.steps,
            "seconds": round(self.position.seconds),
            "settings": settings,
            "held_out": {
                "positions": measured.positions,
                "vocabulary_coverage": round(self.coverage, 4),
                "top1_per_step": [round(value, 4) for value in measured.top1],
                "overlap_per_step": [round(value, 4) for value in measured.overlap],
            },
        }


def train(settings: TrainSettings, target: Target) -> Measurement:
    """Train as ``settings`` say. Raises ``ValueError`` and ``OSError`` for unusable input."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    conversations = read_conversations(settings.data, target.tokenizer, settings.max_length)
    return Trainer(settings, target, conversations).run()
