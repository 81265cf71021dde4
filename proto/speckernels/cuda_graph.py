"""Work of a GPU that is recorded once, and then started as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from specserve import logs

_log = logs.get(__name__)

_Graph = TypeVar("_Graph")

Tensors = tuple[torch.Tensor, ...]

#: Work over tensors that stay where they are; it returns others.
Work = Callable[[], Tensors]

#: Does recorded work once more, with what its tensors hold by then, and renews its results.
Replay = Callable[[], None]

#: Does work for the first time; returns its results with what renews them.
CaptureFn = Callable[[Work], tuple[Tensors, Replay]]

# A capture begins by a wait for the whole device, which ends any other that is under way.
_capturing = threading.Lock()

# All graphs of the process, also those that failed or are not used. Of a pool whose graphs are all
# gone nothing can be captured any more (torch 2.11: its workspace outlives them); a graph that goes
# takes the workspace of all others of its stream with it (2.12 and 2.13); and after a capture that
# failed the allocator still asks the graph about it (2.11).
_graphs: list[torch.cuda.CUDAGraph] = []


class CudaGraphCapture:
    """Records CUDA graphs, which share their memory: results hold until the next replay of any.

    Warm-up and capture run on one stream. The workspace of matrix products belongs to a stream: it
    is then there before the first capture, outside of the memory that graphs share.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the device that all the work is for."""
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        self._failed = False

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        """See `CaptureFn`; `work` is called several times. The caller's stream stays as it is.

        Raises:
            RuntimeError: it does what cannot be recorded, such as waiting for the device. What
                graphs share is then in no known state: nothing further is recorded into it.
        """
        with _capturing, torch.cuda.device(self._device):
            if self._failed:
                raise RuntimeError("an earlier capture has failed")
            caller = torch.cuda.current_stream()
            # A capture that fails to end leaves its own stream behind as the current one.
            with torch.cuda.stream(caller):
                self._stream.wait_stream(caller)
                with torch.cuda.stream(self._stream):
                    # What libraries set up in a first call cannot be recorded.
                    for _ in range(2):
                        work()
                caller.wait_stream(self._stream)
                return self._captured(work)

    def _captured(self, work: Work) -> tuple[Tensors, Replay]:
        graph = torch.cuda.CUDAGraph()
        _graphs.append(graph)
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                results = work()
        except RuntimeError as error:
            self._failed = True
            # What broke the capture tells more than that it could not end.
            raise RuntimeError(str(error.__context__ or error)) from error
        except BaseException:
            self._failed = True
            raise
        return results, graph.replay


class CapturedGraph:
    """Records for as long as that works."""

    def __init__(self, record: CaptureFn) -> None:
        self._record = record
        #: Why nothing is recorded any more.
        self.ended: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it has worked so far."""
        return self.ended is None

    def attempt(self, make: Callable[[CaptureFn], _Graph]) -> _Graph | None:
        """What `make` records; None from the first time on that it fails."""
        if not self.alive:
            return None
        try:
            return make(self._record)
        except RuntimeError as error:
            self.end(str(error).partition("\n")[0])
            return None

    def end(self, reason: str) -> None:
        """Record nothing from now on."""
        self.ended = reason
        _log.warning("no further graph is recorded", reason=reason)


def eager_capture(work: Work) -> tuple[Tensors, Replay]:
    """A `CaptureFn` of any device that calls the work each time: what a recorded one must equal."""
    results = work()

    def replay() -> None:
        for kept, renewed in zip(results, work(), strict=True):
            kept.copy_(renewed)

    return results, replay
