"""Lessons: batches with what the target has to say about them, prepared ahead of the drafter."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from drafter_svc.train.data.documents import Batch, Document, pack
from drafter_svc.train.objective.teacher import TargetTopTokens, judge
from drafter_svc.train.run.throughput import Meter
from drafter_svc.train.target.feature_source import Captured, FeatureSource

# Lessons that are prepared in advance.
_AHEAD = 2

Group = TypeVar("Group")


@dataclass(frozen=True, slots=True)
class TargetOutputs:
    """All that training needs of the target for one document."""

    captured: Captured
    verdicts: TargetTopTokens


@dataclass(frozen=True, slots=True)
class DistillBatch:
    """A batch of N rows; ``features`` ``[N, captured * H]``, ``final`` ``[N, H]``, on a device."""

    batch: Batch
    features: Tensor
    final: Tensor
    verdicts: TargetTopTokens


class TargetOutputStore(Protocol):
    """Materials kept from an earlier epoch."""

    def get(self, document: int) -> TargetOutputs | None: ...

    def put(self, document: int, material: TargetOutputs) -> None: ...


@dataclass(frozen=True, slots=True)
class TargetFeatures:
    """Where lessons come from.

    ``head`` ``[vocab, H]`` is the target's output layer. ``prompts`` and ``totals`` say what
    there is to judge: prompt positions too, log-sum-exps too. ``meter`` counts the target's work.
    """

    source: FeatureSource
    aux_layers: tuple[int, ...]
    head: Tensor
    prompts: bool
    totals: bool
    store: TargetOutputStore | None = None
    meter: Meter = field(default_factory=Meter)

    def prepare(
        self, documents: Sequence[Document], indices: Sequence[int] = (), *, look: bool = False
    ) -> DistillBatch:
        """The lesson of ``documents``; their ``indices`` are their names in the store.

        A target's last bits depend on what shares its forward. So that they do not depend on how
        far an earlier process came, the store is asked with ``look`` only, and must then hold
        either all that it ever takes or nothing. Raises ``ValueError`` when the target's states
        are not finite or not of the text.
        """
        materials: dict[int, TargetOutputs] = {}
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
        return DistillBatch(
            pack(documents, device),
            torch.cat([m.captured.features for m in kept]).to(device),
            torch.cat([m.captured.final for m in kept]).to(device),
            TargetTopTokens(
                torch.cat([m.verdicts.best for m in kept]).to(device),
                torch.cat([m.verdicts.total for m in kept]).to(device),
            ),
        )

    def _study(self, documents: Sequence[Document]) -> list[TargetOutputs]:
        with self.meter.work("target", sum(len(document.ids) for document in documents)):
            captured = self.source.capture([d.ids for d in documents], self.aux_layers)
            return [self._judge(*pair) for pair in zip(documents, captured, strict=True)]

    def _judge(self, document: Document, states: Captured) -> TargetOutputs:
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
        return TargetOutputs(states, verdicts)


def ahead(
    prepare: Callable[[Group], DistillBatch],
    groups: Iterable[Group | None],
    *,
    threads: int,
    share: Callable[[], bool],
) -> Iterator[DistillBatch]:
    """``prepare`` of each group in order, some of them in advance on a thread of their own.

    Both threads run their operators with ``threads`` threads: fewer barriers than two teams of
    all cores. Where ``share`` says so, the caller's thread takes over a lesson that has not been
    begun instead of waiting, so that neither side idles. Nothing behind a None in ``groups`` is
    begun before all that is ahead of it is done.
    """
    waiting: deque[tuple[Group, Future[DistillBatch]]] = deque()

    def take() -> DistillBatch:
        _, future = waiting.popleft()
        while share() and not future.done():
            spare = next((at for at, (_, f) in enumerate(waiting) if f.cancel()), None)
            if spare is None:
                break
            group, taken = waiting[spare][0], Future[DistillBatch]()
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
