"""Work of a GPU that is recorded once, and then started as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from specwire import logs

_log = logs.get(__name__)

_Graph = TypeVar("_Graph")

Tensors = tuple[torch.Tensor, ...]

#: Work over tensors that stay where they are; it returns others.
Work = Callable[[], Tensors]

#: Does recorded work once more, with what its tensors hold by then, and renews its results.
Replay = Callable[[], None]

#: Does work for the first time; returns its results with what renews them.
Record = Callable[[Work], tuple[Tensors, Replay]]


class Recorder:
    """Records CUDA graphs, which share their memory: results hold until the next replay of any."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        """See `Record`; `work` is called several times.

        Raises:
            RuntimeError: it does what cannot be recorded, such as waiting for the device.
        """
        # What libraries set up in a first call cannot be recorded.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = work()
        return results, graph.replay


class Recording:
    """Records for as long as that works."""

    def __init__(self, record: Record) -> None:
        self._record: Record | None = record

    @property
    def alive(self) -> bool:
        """Whether nothing has failed so far."""
        return self._record is not None

    def attempt(self, make: Callable[[Record], _Graph]) -> _Graph | None:
        """What `make` records; None from the first time on that it fails."""
        if self._record is None:
            return None
        try:
            return make(self._record)
        except RuntimeError as error:
            self._record = None
            reason = str(error).partition("\n")[0]
            _log.warning("no further graph can be recorded", reason=reason)
            return None


def called(work: Work) -> tuple[Tensors, Replay]:
    """A `Record` of any device that calls the work each time: what a recorded one must equal."""
    results = work()

    def replay() -> None:
        for kept, renewed in zip(results, work(), strict=True):
            kept.copy_(renewed)

    return results, replay
