"""States of documents for training: queued by client, run in packed chunks between rounds."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from speckernels.tensor_codec import pack
from specwire.limits import MAX_SHORT_BYTES
from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool, BlockRange, blocks_for
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.target import Target
from verifier_svc.request.documents import FeatureRequest, FeatureRows
from verifier_svc.request.types import Event, Failed

logger = logging.getLogger(__name__)

# Rows of a step while generations run: each of them waits for it once.
BUSY_ROWS = 64
# Room for the rest of a message.
_MESSAGE_BYTES = MAX_SHORT_BYTES - 1024


@dataclass(slots=True)
class _Document:
    """A document with memory: rows 0 .. computed - 1 have been run."""

    wish: FeatureRequest
    extent: BlockRange
    computed: int = 0
    # Its keys and values may hold numbers that are not finite.
    poisoned: bool = False


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of one document in a packed batch."""

    document: _Document
    position: int
    tokens: tuple[int, ...]
    prompt: bool = True

    @property
    def slot(self) -> int:
        return self.document.extent.slot


class FeatureQueue:
    """Who is next, in which memory. Clients take turns; a document that has memory completes."""

    def __init__(self, slots: int) -> None:
        """`slots` is the memory, in tokens: the longest document."""
        self.pool = BlockPool(blocks_for(slots))
        self._waiting: dict[int, deque[FeatureRequest]] = {}
        self._running: list[_Document] = []

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, wish: FeatureRequest) -> None:
        """Queue a document behind those of its client."""
        self._waiting.setdefault(wish.client, deque()).append(wish)

    def drop(self, client: int) -> list[_Document]:
        """Forget all of a client; returns what had memory, which the caller gives back."""
        self._waiting.pop(client, None)
        gone = [d for d in self._running if d.wish.client == client]
        self._running = [d for d in self._running if d.wish.client != client]
        return gone

    def release(self, document: _Document) -> None:
        """Take a document's memory back."""
        self.pool.give(document.extent)

    def plan(self, budget: int) -> list[_Chunk]:
        """At most `budget` rows, of documents in order of admission."""
        self._admit()
        chunks = []
        for document in self._running:
            if budget <= 0:
                break
            start = document.computed
            tokens = document.wish.tokens[start : start + budget]
            chunks.append(_Chunk(document, start, tokens))
            budget -= len(tokens)
        return chunks

    def commit(self, chunks: list[_Chunk]) -> list[_Document]:
        """Take what was run; returns the documents that are complete."""
        for chunk in chunks:
            chunk.document.computed += len(chunk.tokens)
        done = [d for d in self._running if d.computed == len(d.wish.tokens)]
        self._running = [d for d in self._running if d.computed < len(d.wish.tokens)]
        return done

    def _admit(self) -> None:
        while self._waiting:
            client, wishes = next(iter(self._waiting.items()))
            extent = self.pool.take(blocks_for(len(wishes[0].tokens)))
            if extent is None:
                return
            self._running.append(_Document(wishes.popleft(), extent))
            del self._waiting[client]
            if wishes:
                self._waiting[client] = wishes


class FeatureRunner:
    """Runs documents on the engine's thread, in memory of its own, apart from generations.

    While generations run, a step has at most `BUSY_ROWS` rows, and as much time passes after it
    as it took: documents never take more than half of the engine. The memory for keys and values
    of the longest document is taken with the first one.
    """

    def __init__(
        self,
        target: Target,
        *,
        max_tokens: int,
        budget: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.max_tokens = max_tokens
        self.queue = FeatureQueue(max_tokens)
        self._target = target
        self._budget = budget
        self._clock = clock
        self._cache: KVCache | None = None
        self._not_before = 0.0

    def __bool__(self) -> bool:
        return bool(self.queue)

    def add(self, wish: FeatureRequest) -> None:
        """Queue a document."""
        self.queue.add(wish)

    def drop(self, client: int) -> None:
        """Forget all of a client; an unknown one is no error."""
        for document in self.queue.drop(client):
            self._release(document)

    def step(self, *, busy: bool) -> list[tuple[int, Event]]:
        """Run one packed batch, if it is time; returns events by client.

        A batch that fails ends the calls of the clients whose documents were in it.
        """
        started = self._clock()
        if not self.queue or (busy and started < self._not_before):
            return []
        chunks = self.queue.plan(min(self._budget, BUSY_ROWS) if busy else self._budget)
        try:
            events: list[tuple[int, Event]] = list(self._run(chunks))
        except Exception:
            logger.exception("states of documents could not be computed; their calls end")
            return self._fail({chunk.document.wish.client for chunk in chunks})
        for document in self.queue.commit(chunks):
            self._release(document)
        ended = self._clock()
        self._not_before = ended + (ended - started)
        return events

    def _run(self, chunks: list[_Chunk]) -> Iterator[tuple[int, FeatureRows]]:
        layers = {layer for chunk in chunks for layer in chunk.document.wish.aux_layers}
        final, states = self._target.states(chunks, self._memory(), layers)
        row = 0
        for chunk in chunks:
            wish, count = chunk.document.wish, len(chunk.tokens)
            own = slice(row, row + count)
            row += count
            # Finite rows come out of finite keys and values only.
            if not torch.isfinite(final[own]).all():
                chunk.document.poisoned = True
            features = torch.cat([states[layer][own] for layer in wish.aux_layers], -1)
            whole = final[own]
            step = max(1, _MESSAGE_BYTES // _row_bytes(features, whole))
            for start in range(0, count, step):
                part = slice(start, start + step)
                yield (
                    wish.client,
                    FeatureRows(
                        wish.document,
                        chunk.position + start,
                        len(whole[part]),
                        pack(features[part]),
                        pack(whole[part]),
                    ),
                )

    def _fail(self, clients: set[int]) -> list[tuple[int, Event]]:
        for client in clients:
            for document in self.queue.drop(client):
                # What a batch that failed has left there is not known.
                document.poisoned = True
                self._release(document)
        reason = "The engine failed on a document of this call, or on one beside it."
        return [(client, Failed(reason)) for client in clients]

    def _release(self, document: _Document) -> None:
        if document.poisoned and self._cache is not None:
            # Masked slots are read, and must be finite.
            extent = document.extent
            self._cache.clear(extent.slot, extent.count * BLOCK_SIZE)
        self.queue.release(document)

    def _memory(self) -> KVCache:
        if self._cache is None:
            self._cache = self._target.reserve(self.queue.pool.blocks, feature_width=0)
        return self._cache


def _row_bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.shape[-1] * tensor.element_size() for tensor in tensors)
