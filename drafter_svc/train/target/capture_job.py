"""One capture by many verifiers: who has which document, and what has come. Thread-safe."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specwire import tensor
from specwire.errors import DataLoss
from specwire.v1 import verifier_pb2 as pb


@dataclass(eq=False)
class Held:
    """A document at a verifier, with the rows that have come of it."""

    tokens: int
    rows: list[pb.FeatureRows] = field(default_factory=list)
    received: int = 0


@dataclass(eq=False)
class Stream:
    """One call to one verifier, from its welcome to its end."""

    welcome: pb.FeaturesWelcome | None = None
    held: dict[int, Held] = field(default_factory=dict)
    tokens: int = 0
    answered: int = 0
    closed: bool = False
    # Ends the call.
    cancel: Callable[[], object] = lambda: None


class CaptureJob:
    """Documents of one capture, spread over streams and put together again.

    A stream holds at most its verifier's window, and at most half of an even share, so that the
    faster verifier gets more; what a lost stream held goes to the next one that has room.
    """

    def __init__(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...], verifiers: int
    ) -> None:
        self.documents = documents
        self.aux_layers = aux_layers
        self._share = -(-sum(map(len, documents)) // (2 * verifiers)) if verifiers > 1 else None
        self._changed = threading.Condition()
        self._pending = deque(range(len(documents)))
        self._complete: deque[tuple[int, list[pb.FeatureRows]]] = deque()
        self._unanswered = len(documents)
        self._error: Exception | None = None
        self._streams: set[Stream] = set()

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done."""
        with self._changed:
            return self._over

    @property
    def _over(self) -> bool:
        return self._error is not None or not self._unanswered

    def fail(self, error: Exception) -> None:
        """End the job; `next_complete` raises `error`."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def next_complete(self) -> tuple[int, list[pb.FeatureRows]]:
        """Wait for a document: its index and all of its rows."""
        with self._changed:
            self._changed.wait_for(lambda: self._complete or self._error)
            if self._error is not None:
                raise self._error
            return self._complete.popleft()

    def pause(self, seconds: float) -> None:
        """Wait, unless the job ends before."""
        with self._changed:
            self._changed.wait_for(lambda: self._over, seconds)

    def open(self) -> Stream:
        """A stream that begins."""
        stream = Stream()
        with self._changed:
            self._streams.add(stream)
        return stream

    def welcome(self, stream: Stream, welcome: pb.FeaturesWelcome) -> None:
        """Take a verifier's limits.

        Raises:
            ValueError: a document is over them.
        """
        for index, document in enumerate(self.documents):
            if not 0 < len(document) <= welcome.max_tokens:
                raise ValueError(
                    f"document {index}: {len(document)} tokens, the verifier takes from 1 to "
                    f"{welcome.max_tokens}"
                )
            if not 0 <= min(document) <= max(document) < welcome.vocab_size:
                raise ValueError(
                    f"document {index}: token ids must be below the vocabulary size "
                    f"{welcome.vocab_size}"
                )
        with self._changed:
            stream.welcome = welcome
            self._changed.notify_all()

    def leave(self) -> None:
        """End the calls that would not end by themselves now that the job is over."""
        with self._changed:
            streams = [s for s in self._streams if s.welcome is None or self._error is not None]
        for stream in streams:
            stream.cancel()

    def take(self, stream: Stream) -> int | None:
        """Wait until the stream has room for a document; None at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or stream.closed or self._room(stream))
            if self._over or stream.closed:
                return None
            index = self._pending.popleft()
            stream.held[index] = Held(len(self.documents[index]))
            stream.tokens += stream.held[index].tokens
            return index

    def _room(self, stream: Stream) -> bool:
        if not self._pending or stream.welcome is None:
            return False
        limit = min(stream.welcome.window, self._share or stream.welcome.window)
        tokens = stream.tokens + len(self.documents[self._pending[0]])
        return not stream.held or tokens <= limit

    def receive(self, stream: Stream, rows: pb.FeatureRows) -> None:
        """Take rows.

        Raises:
            WireError: they are not those that are due.
        """
        held = stream.held.get(rows.document)
        if held is None or rows.start != held.received or stream.welcome is None:
            raise DataLoss(f"rows {rows.start} of document {rows.document} were not due.")
        hidden, final = stream.welcome.hidden_size, tensor.check(rows.final, "final")
        if len(final) != 2 or final[1] != hidden:
            raise DataLoss(f"final: shape is {list(final)}.")
        count = final[0]
        width = len(self.aux_layers) * hidden
        if tensor.check(rows.features, "features") != (count, width):
            raise DataLoss(f"features: shape is {list(rows.features.shape)}.")
        held.rows.append(rows)
        held.received += count
        if not count or held.received > held.tokens:
            raise DataLoss(f"{held.received} rows of document {rows.document} came.")
        if held.received == held.tokens:
            with self._changed:
                del stream.held[rows.document]
                stream.tokens -= held.tokens
                stream.answered += 1
                self._complete.append((rows.document, held.rows))
                self._unanswered -= 1
                self._changed.notify_all()

    def close(self, stream: Stream) -> None:
        """End a stream; what it held is pending again."""
        with self._changed:
            stream.closed = True
            self._pending.extendleft(sorted(stream.held, reverse=True))
            stream.held.clear()
            self._streams.discard(stream)
            self._changed.notify_all()
