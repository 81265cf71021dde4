"""The order of lessons over a run, and who prepares them."""

from collections import deque
from collections.abc import Iterator
from itertools import count, islice

import torch

from drafter_svc.train.data.documents import Document, plan_batches
from drafter_svc.train.run.distill_batch import DistillBatch, TargetFeatures, ahead
from drafter_svc.train.run.feature_cache import FeatureCache
from drafter_svc.train.run.process_group import ProcessGroup
from drafter_svc.train.run.run_folder import Position
from drafter_svc.train.settings import TrainSettings


class DataSchedule:
    """This process's lessons of each update of a run over ``documents``.

    The order derives from the settings and the position only. ``position`` is read, as the run
    goes on.
    """

    def __init__(
        self,
        settings: TrainSettings,
        documents: list[Document],
        classroom: TargetFeatures,
        cache: FeatureCache | None,
        world: ProcessGroup,
        position: Position,
    ) -> None:
        self._settings, self._documents, self._position = settings, documents, position
        self._classroom, self._cache, self._world = classroom, cache, world
        self.epoch_tokens = sum(map(self._taught, documents))
        self._cores = torch.get_num_threads()

    @property
    def total(self) -> float:
        """Taught tokens of the whole run."""
        return self._settings.epochs * self.epoch_tokens

    def updates(self) -> Iterator[tuple[int, list[DistillBatch]]]:
        """(taught tokens over all processes, this process's lessons) of each update to come.

        While the target works in this process, it and the drafter have half of the cores each.
        """
        tokens: deque[int] = deque()
        half = max(1, self._cores // 2)
        mine = range(self._world.rank, self._settings.accumulate, self._world.size)
        groups = self._groups(mine, tokens)
        prepared = ahead(self.prepare, groups, threads=half, share=self._shares)
        while True:
            torch.set_num_threads(half if self._shares() else self._cores)
            lessons = list(islice(prepared, len(mine)))
            yield tokens.popleft(), lessons

    def prepare(self, group: tuple[list[int], bool]) -> DistillBatch:
        """The lesson of the documents with these indices, from the cache after the first epoch."""
        indices, later = group
        documents = [self._documents[index] for index in indices]
        return self._classroom.prepare(documents, indices, look=later)

    def _shares(self) -> bool:
        """Whether the target's work in this process is worth half of the cores."""
        if self._settings.verifiers or self._settings.device != "cpu":
            return False
        first = self._position.tokens < self.epoch_tokens
        return first or self._cache is None or not self._cache.holds_all

    def _groups(self, mine: range, tokens: deque[int]) -> Iterator[tuple[list[int], bool] | None]:
        """This process's batches of every update to come, without end; true after one epoch.

        ``tokens`` gets the taught tokens of each update. A None ends an epoch: what one epoch
        puts into the cache is there when the next one looks.
        """
        lengths = [len(document.ids) for document in self._documents]
        taught = [self._taught(document) for document in self._documents]
        size = self._settings.accumulate
        epochs = (
            list(plan_batches(lengths, self._settings.batch_tokens, self._settings.seed + epoch))
            for epoch in count()
        )
        groups = (
            (group, group is plan[-1], epoch > 0)
            for epoch, plan in enumerate(epochs)
            for group in plan
        )
        ahead_of_us = islice(groups, self._position.steps * size, None)
        while update := list(islice(ahead_of_us, size)):
            tokens.append(sum(taught[index] for group, *_ in update for index in group))
            for at, (group, last, later) in enumerate(update):
                if at in mine:
                    yield group, later
                if last:
                    yield None

    def _taught(self, document: Document) -> int:
        """Tokens of a document that count."""
        if self._settings.teach_prompts:
            return len(document.ids) - 1
        return sum(document.answer[1:])
