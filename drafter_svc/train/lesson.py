"""Lessons: batches with what the target has to say about them, prepared ahead of the drafter."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from drafter_svc.train.data import Batch, Document, pack
from drafter_svc.train.source import Captured, FeatureSource
from drafter_svc.train.teacher import Verdicts, judge
from drafter_svc.train.throughput import Meter

# Lessons that are prepared in advance.
_AHEAD = 2

Group = TypeVar("Group")


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
    there is to judge: prompt positions too, log-sum-exps too. ``meter`` counts the target's work.
    """

    source: FeatureSource
    aux_layers: tuple[int, ...]
    head: Tensor
    prompts: bool
    totals: bool
    store: MaterialStore | None = None
    meter: Meter = field(default_factory=Meter)

    def prepare(
        self, documents: Sequence[Document], indices: Sequence[int] = (), *, look: bool = False
    ) -> Lesson:
        """The lesson of ``documents``; their ``indices`` are their names in the store.

        A target's last bits depend on what shares its forward. So that they do not depend on how
        far an earlier process came, the store is asked with ``look`` only, and must then hold
        either all that it ever takes or nothing. Raises ``ValueError`` when the target's states
        are not finite or not of the text.
        """
        materials: dict[int, Material] = {}
        for at, index in enumerate(indices if look and self.store else ()):
            if self.store and (material := self.store.get(index)):
                materials[at] = material
        missing = [at for at in range(len(documents)) if at not in materials]
        if missing:
            for at, material in zip(
                missing, self._study([documents[at] for at in missing]), strict=True
            ):
                materials[at] = material
                if self.store and indices:
                    self.store.put(indices[at], material)
        kept = [materials[at] for at in range(len(documents))]
        device = self.head.device
        return Lesson(
            pack(documents, device),
            torch.cat([m.captured.features for m in kept]).to(device),
            torch.cat([m.captured.final for m in kept]).to(device),
            Verdicts(
                torch.cat([m.verdicts.best for m in kept]).to(device),
                torch.cat([m.verdicts.total for m in kept]).to(device),
            ),
        )

    def _study(self, documents: Sequence[Document]) -> list[Material]:
        with self.meter.work("target", sum(len(document.ids) for document in documents)):
            captured = self.source.capture([d.ids for d in documents], self.aux_layers)
            return [self._judge(*pair) for pair in zip(documents, captured, strict=True)]

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
    prepare: Callable[[Group], Lesson],
    groups: Iterable[Group | None],
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
    waiting: deque[tuple[Group, Future[Lesson]]] = deque()

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
