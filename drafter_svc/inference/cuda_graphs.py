"""Work of a GPU on batches of set shapes: each shape is recorded, and tried, where first needed."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from speckernels import CapturedGraph, CaptureFn, eager_capture
from speckernels.cuda_graph import Tensors

_Shape = TypeVar("_Shape", bound=Hashable)


class _Graph:
    """Work that is recorded over tensors of its own, which are idle as long."""

    def __init__(
        self, work: Callable[[Tensors], Tensors], record: CaptureFn, idle: Tensors
    ) -> None:
        self._inputs = idle
        self._results, self._replay = record(lambda: work(self._inputs))

    def run(self, inputs: Tensors) -> Tensors:
        """What becomes of inputs of the shapes that are recorded, until the next run of any."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._replay()
        return self._results


class CudaGraphs(Generic[_Shape]):
    """The recorded form of what works on inputs of a shape, which tells them all apart."""

    def __init__(
        self,
        work: Callable[[_Shape, Tensors], Tensors],
        idle: Callable[[Tensors], Tensors],
        same: Callable[[Tensors, Tensors], bool],
        recording: CapturedGraph,
    ) -> None:
        """Take what works without waiting for its device, and what compares its results.

        ``idle`` makes new inputs like others, for which the work touches nobody's memory.
        """
        self._work = work
        self._idle = idle
        self._same = same
        self._recording = recording
        self._graphs: dict[_Shape, _Graph] = {}
        # Others may run in memory that a graph has claimed: one that is dropped takes it along.
        self._rejected: list[_Graph] = []

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, shape: _Shape, inputs: Tensors) -> Tensors | None:
        """What becomes of the inputs, until the next run; None where it cannot be recorded."""
        if shape not in self._graphs:
            graph = self._recording.attempt(lambda record: self._recorded(record, shape, inputs))
            if graph is None:
                return None
            self._graphs[shape] = graph
        return self._graphs[shape].run(inputs)

    def _recorded(self, record: CaptureFn, shape: _Shape, inputs: Tensors) -> _Graph:
        """A new graph, if it gives what the work does without being recorded.

        Raises:
            RuntimeError: it does not, or cannot be recorded.
        """

        def work(tensors: Tensors) -> Tensors:
            return self._work(shape, tensors)

        graph, plain = (_Graph(work, each, self._idle(inputs)) for each in (record, eager_capture))
        if not self._same(graph.run(inputs), plain.run(inputs)):
            self._rejected.append(graph)
            raise RuntimeError("a graph gives something else than what was recorded.")
        return graph


def least(sizes: Sequence[int], wanted: int) -> int | None:
    """The least of ascending sizes that is enough; None where none is."""
    return next((size for size in sizes if size >= wanted), None)
