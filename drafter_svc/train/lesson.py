"""Lessons: batches with what the target has to say about them, prepared ahead of the drafter."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from drafter_svc.train.data import Batch, Document, pack
from drafter_svc.train.source import Captured, FeatureSource
from drafter_svc.train.teacher import Verdicts, judge

# Lessons that are prepared in advance.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Material:
    """All that training needs of the target for one document."""

    captured: Captured
    verdicts: Verdicts


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch of N rows; ``features`` ``[N, captured * H]``, ``final`` ``[N, H]``, on a device."""

    batch: Batch
    features: Tensor
    final: Tensor
    verdicts: Verdicts


class MaterialStore(Protocol):
    """Materials kept from an earlier epoch."""

    def get(self, document: int) -> Material | None: ...

    def put(self, document: int, material: Material) -> None: ...


@dataclass(frozen=True, slots=True)
class Classroom:
    """Where lessons come from.

    ``head`` ``[vocab, H]`` is the target's output layer. ``prompts`` and ``totals`` say what
    there is to judge: prompt positions too, log-sum-exps too.
    """

    source: FeatureSource
    aux_layers: tuple[int, ...]
    head: Tensor
    prompts: bool
    totals: bool
    store: MaterialStore | None = None

    def prepare(self, documents: Sequence[Document], indices: Sequence[int] = ()) -> Lesson:
        """The lesson of ``documents``; their ``indices`` are their names in the store.

        Raises ``ValueError`` when the target's states are not finite or not of the text.
        """
        materials = self._kept(indices)
        if not materials:
            captured = self.source.capture(
                [document.ids for document in documents], self.aux_layers
            )
            materials = [self._judge(*pair) for pair in zip(documents, captured, strict=True)]
            if self.store:
                for index, material in zip(indices, materials, strict=False):
                    self.store.put(index, material)
        device = self.head.device
        return Lesson(
            pack(documents, device),
            torch.cat([m.captured.features for m in materials]).to(device),
            torch.cat([m.captured.final for m in materials]).to(device),
            Verdicts(
                torch.cat([m.verdicts.best for m in materials]).to(device),
                torch.cat([m.verdicts.total for m in materials]).to(device),
            ),
        )

    def _kept(self, indices: Sequence[int]) -> list[Material]:
        """The materials of all documents, or none.

        A target's last bits depend on what shares its forward. So a lesson's states are those of
        one forward or those that were kept, never a mixture that depends on what is missing.
        """
        materials: list[Material] = []
        for index in indices if self.store else ():
            material = self.store.get(index) if self.store else None
            if material is None:
                return []
            materials.append(material)
        return materials

    def _judge(self, document: Document, states: Captured) -> Material:
        shapes = [tuple(states.features.shape), tuple(states.final.shape)]
        rows, width = len(document.ids), self.head.shape[1]
        if shapes != [(rows, len(self.aux_layers) * width), (rows, width)]:
            raise ValueError(f"the target's states have shapes {shapes} for {rows} tokens")
        if not bool(states.features.isfinite().all() and states.final.isfinite().all()):
            raise ValueError(
                f"the target's states are not finite for the text of ids {document.ids[:8]}.."
            )
        taught = torch.zeros(rows, dtype=torch.bool)
        taught[:-1] = True if self.prompts else torch.tensor(document.answer[1:])
        final = states.final.to(self.head.device)
        verdicts = judge(final, self.head, taught.to(final.device), totals=self.totals)
        return Material(states, verdicts)


def ahead(
    prepare: Callable[[list[int]], Lesson],
    groups: Iterable[list[int] | None],
    *,
    threads: int,
    share: Callable[[], bool],
) -> Iterator[Lesson]:
    """``prepare`` of each group in order, some of them in advance on a thread of their own.

    Both threads run their operators with ``threads`` threads: fewer barriers than two teams of
    all cores. Where ``share`` says so, the caller's thread takes over a lesson that has not been
    begun instead of waiting, so that neither side idles. Nothing behind a None in ``groups`` is
    begun before all that is ahead of it is done.
    """
    waiting: deque[tuple[list[int], Future[Lesson]]] = deque()

    def take() -> Lesson:
        _, future = waiting.popleft()
        while share() and not future.done():
            spare = next((at for at, (_, f) in enumerate(waiting) if f.cancel()), None)
            if spare is None:
                break
            group, taken = waiting[spare][0], Future[Lesson]()
            taken.set_result(prepare(group))
            waiting[spare] = group, taken
        return future.result()

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for group in groups:
                if group is None:
                    while waiting:
                        yield take()
                    continue
                waiting.append((group, pool.submit(prepare, group)))
                if len(waiting) > _AHEAD:
                    yield take()
            while waiting:
                yield take()
        finally:
            for _, future in waiting:
                future.cancel()
