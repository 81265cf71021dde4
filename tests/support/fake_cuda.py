"""A CUDA device as far as capturing on it goes: streams, captures, pools and workspaces.

`torch.cuda.graph` and `torch.cuda.stream` are torch's own; what they call is replaced. Rules are
those of torch's `CUDAGraph`, caching allocator and cuBLAS handles, in its version 2.11 or 2.13.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch

Version = Literal["2.11", "2.13"]
_Pool = tuple[int, int]


@dataclass(eq=False)
class Stream:
    """A stream of a device; 0 is the default one."""

    device: torch.device
    number: int

    def wait_stream(self, other: Stream) -> None:
        """Order is that of calls here."""


@dataclass(eq=False)
class _Workspace:
    """Memory of the products of one thread on one stream; in a pool where a capture made it."""

    pool: _Pool | None
    freed: bool = False


@dataclass
class _State:
    """What each thread has of its own."""

    device: int = 0
    streams: dict[int, Stream] = field(default_factory=dict)


class FakeCuda:
    """Two devices, and what has been done on them."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.captured: list[_Pool] = []
        self._local = threading.local()
        self._default = [Stream(torch.device("cuda", index), 0) for index in range(2)]
        self._numbers = itertools.count(1)
        self._uses: dict[_Pool, int] = {}
        # What captures as CUDA sees it, and by its pool what the allocator takes for a capture.
        self._capturing: dict[Stream, Any] = {}
        self._underway: set[_Pool] = set()
        self._workspaces: dict[tuple[int, Stream], _Workspace] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in torch's place."""
        parts: dict[str, Any] = {
            "Stream": lambda: Stream(self._default[self._state.device].device, next(self._numbers)),
            "CUDAGraph": lambda: _Graph(self),
            "_get_device_index": lambda *_: self._state.device,
            "current_stream": self.current_stream,
            "set_stream": self._set_stream,
            "device": self._device,
            "graph_pool_handle": lambda: (0, next(self._numbers)),
            "synchronize": self.synchronize,
            "empty_cache": self._empty_cache,
        }
        for name, part in parts.items():
            monkeypatch.setattr(torch.cuda, name, part)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return self._state.device

    def current_stream(self, device: Any = None) -> Any:
        """The `Stream` of this thread on a device, by default the current one."""
        index = self._state.device if device is None else torch.device(device).index
        return self._state.streams.get(index, self._default[index])

    def multiply(self, do: Callable[[], object], device: int = 0) -> None:
        """A product of tensors of a device: done now, or kept for replays where it is captured."""
        stream = self.current_stream(torch.device("cuda", device))
        graph = self._capturing.get(stream)
        handle = threading.get_ident(), stream
        if handle not in self._workspaces:
            self._workspaces[handle] = _Workspace(None if graph is None else graph.of)
        if graph is None:
            do()
        else:
            graph.nodes.append((do, self._workspaces[handle]))

    def wait(self) -> None:
        """Wait for what this thread has queued, as `item` does."""
        mine = [g for g in self._capturing.values() if g.thread == threading.get_ident()]
        for graph in mine:
            graph.broken = True
        if mine:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\n...")

    def synchronize(self) -> None:
        """Wait for the current device, which ends all captures on it, of whatever thread."""
        here = [g for s, g in self._capturing.items() if s.device.index == self._state.device]
        for graph in here:
            graph.broken = True
        if here:
            raise RuntimeError("CUDA error: operation would make the legacy stream depend on ...")

    @property
    def _state(self) -> _State:
        if not hasattr(self._local, "state"):
            self._local.state = _State()
        state: _State = self._local.state
        return state

    def _set_stream(self, stream: Stream) -> None:
        self._state.device = stream.device.index
        self._state.streams[stream.device.index] = stream

    @contextlib.contextmanager
    def _device(self, device: Any) -> Any:
        before, index = self._state.device, torch.device(device).index
        self._state.device = before if index is None else index
        try:
            yield
        finally:
            self._state.device = before

    def _empty_cache(self) -> None:
        if self._underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        held = {space.pool for space in self._workspaces.values() if not space.freed}
        self._uses = {p: uses for p, uses in self._uses.items() if uses or p in held}

    def begin(self, graph: _Graph, pool: _Pool) -> None:
        stream = self.current_stream()
        if stream.number == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if self._uses.get(pool, 1) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self._uses[pool] = self._uses.get(pool, 0) + 1
        self._underway.add(pool)
        self.captured.append(pool)
        graph.of, graph.stream, graph.thread = pool, stream, threading.get_ident()
        self._capturing[stream] = graph

    def end(self, graph: _Graph) -> None:
        if self.current_stream() is not graph.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        del self._capturing[graph.stream]
        if not graph.broken or self.version != "2.11":
            self._underway.discard(graph.of)
        if graph.broken:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        graph.ended = True

    def release(self, graph: _Graph) -> None:
        self._uses[graph.of] -= 1
        if self.version == "2.11":
            return
        for (_, stream), space in self._workspaces.items():
            if stream is graph.stream:
                space.freed = True
        self._workspaces = {k: space for k, space in self._workspaces.items() if not space.freed}


class _Graph:
    """A captured graph."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.of: _Pool = (0, 0)
        self.stream = cuda.current_stream()
        self.thread = 0
        self.broken = self.ended = False
        self.nodes: list[tuple[Callable[[], object], _Workspace]] = []

    def capture_begin(self, pool: _Pool, *, capture_error_mode: str, **_: object) -> None:
        assert capture_error_mode == "thread_local", "other threads use the device meanwhile"
        self._cuda.begin(self, pool)

    def capture_end(self) -> None:
        self._cuda.end(self)

    def replay(self) -> None:
        assert self.ended
        for do, workspace in self.nodes:
            if workspace.freed:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            do()

    def __del__(self) -> None:
        if self.ended:
            self._cuda.release(self)
