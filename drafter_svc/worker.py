"""What messages lead to: rows into the cache, and all wishes into one batch of chains."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drafter_svc import metrics
from drafter_svc.cache import CacheFullError, KvCache, Slot
from drafter_svc.chain import Chain, ChainRequest, Rows
from drafter_svc.drawing import Penalties
from drafter_svc.messages import Answers, BulkMessage, RoundMessage
from drafter_svc.sequences import Held, Key, Sequences
from specwire import logs
from specwire.device import use
from specwire.draft import Ack, Draft, DraftSource, Extend, Need, Opening

_log = logs.get(__name__)

_WARM_UP: Key = (-1, 0)


@dataclass(slots=True)
class _Batch:
    """What is gathered from messages until it runs in one go."""

    in_use: set[Key]
    rows: list[Rows] = field(default_factory=list)
    slots: dict[Key, Slot] = field(default_factory=dict)
    wishes: dict[Key, tuple[Held, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Features:
    """Rows of features, and the sum of each, which tells whether it is finite."""

    rows: Tensor
    sums: list[float]

    @classmethod
    def of(cls, rows: Tensor) -> "_Features":
        """One look at all rows of a message: a device is waited for once."""
        return cls(rows, rows.sum(-1, dtype=torch.float32).tolist())

    def __getitem__(self, rows: slice) -> "_Features":
        return _Features(self.rows[rows], self.sums[rows])


class Worker:
    """Sequences, their KV and penalties, kept in step. All calls come from one thread."""

    def __init__(
        self, chain: Chain, cache: KvCache, sequences: Sequences, max_draft_tokens: int
    ) -> None:
        self._chain = chain
        self._cache = cache
        self._sequences = sequences
        self._scratch = max_draft_tokens
        self._penalties: dict[Key, Penalties | None] = {}

    def warm_up(self) -> None:
        """Run chains, greedy and drawn, so that no request pays for first calls.

        From now on the device is the calling thread's own.
        """
        use(self._chain.device)
        slot, _ = self._cache.reserve(_WARM_UP, 4 + self._scratch, set())
        self._chain.append([Rows(slot, 0, [0] * 4, self._chain.zeros(4))])
        # Large batches first: the memory of a recorded one is used again by those that need less.
        for size in reversed(self._chain.sizes):
            for length in range(self._scratch, 0, -1):
                for temperature in (0.0, 1.0):
                    opening = Opening(0, 1, temperature=temperature)
                    self._chain.draft([ChainRequest(slot, 4, length, opening)] * size)
            _log.debug("warmed up", chains=size)
        self._cache.free(_WARM_UP)

    def report(self) -> None:
        """Tell the gauges what is held."""
        metrics.LINKS.set(self._sequences.links)
        metrics.SEQUENCES.set(len(self._sequences))
        metrics.KV_BYTES.set(self._cache.bytes_used)

    def count(self, served: Iterable[Answers]) -> None:
        """Count the drafts of a batch that was served."""
        chains = 0
        for answers in served:
            for draft in answers.drafts:
                if draft.tokens:
                    chains += draft.source is DraftSource.CHAIN
                    metrics.DRAFT_TOKENS.labels(draft.source).inc(len(draft.tokens))
        if chains:
            metrics.BATCH_SIZE.observe(chains)
            metrics.CHAINS.inc(chains)

    def open_link(self, link: int) -> None:
        """A verifier is there."""
        self._sequences.open_link(link)

    def close_link(self, link: int) -> None:
        """A verifier is gone, and its sequences with it."""
        for key in self._sequences.close_link(link):
            self._drop(key)

    def serve(self, rounds: Sequence[RoundMessage]) -> dict[int, Answers]:
        """Take rounds of any links and answer their wishes, by link."""
        rounds = [message for message in rounds if self._sequences.has_link(message.link)]
        batch = _Batch({(r.link, extend.seq) for r in rounds for extend in r.extends})
        answers: dict[int, Answers] = defaultdict(Answers)
        for message in rounds:
            for seq in message.closes:
                self._end((message.link, seq))
            features = _Features.of(self._chain.prepare(message.features))
            at = 0
            for extend in message.extends:
                piece = features[at : at + len(extend.tokens)]
                at += len(extend.tokens)
                taken = self._take(message.link, extend, piece, batch)
                if isinstance(taken, Need):
                    answers[message.link].needs.append(taken)
        self._append(batch, "round")
        self._draft(batch, answers)
        return answers

    def fill(self, pieces: Sequence[BulkMessage]) -> list[Ack | None]:
        """Take bulk rows. Returns the Ack of each piece; None where the link is gone."""
        batch = _Batch({(piece.link, piece.extend.seq) for piece in pieces})
        acks: list[Ack | None] = []
        for piece in pieces:
            if not self._sequences.has_link(piece.link):
                acks.append(None)
                continue
            extend = piece.extend
            features = _Features.of(self._chain.prepare(piece.features))
            taken = self._take(piece.link, extend, features, batch)
            if isinstance(taken, Need):
                real_len = taken.real_len
            else:
                real_len = extend.stop if taken.refused else taken.receiver.real_len
            acks.append(Ack(extend.seq, real_len, extend.stop, piece.rows))
        self._append(batch, "bulk")
        # An Ack says that the rows have been run, and how long that took.
        self._chain.finish()
        return acks

    def _take(self, link: int, extend: Extend, features: _Features, batch: _Batch) -> Held | Need:
        """Stage the new rows of ``extend`` and its wish."""
        taken = self._sequences.extend(link, extend)
        if isinstance(taken, Need):
            metrics.NEEDS.inc()
            return taken
        held, fresh = taken
        if extend.wish:
            batch.wishes[held.key] = (held, extend.stop)
        if held.refused:
            self._release(held.key)
            return held
        known = fresh.start - extend.start
        tokens, features = extend.tokens[known:], features[known:]
        if not math.isfinite(sum(features.sums)):
            self._refuse(held, "its features are not finite")
            return held
        try:
            in_use = batch.in_use | {held.source} if held.source else batch.in_use
            slot = self._reserve(held, fresh.stop + self._scratch, in_use)
        except CacheFullError:
            self._refuse(held, "it does not fit into the memory for KV")
            return held
        batch.slots[held.key] = slot
        if held.source is not None:
            self._inherit(held, held.source, fresh.start, slot, batch)
        if tokens:
            batch.rows.append(Rows(slot, fresh.start, tokens, features.rows))
            self._penalize(held, tokens)
        return held

    def _reserve(self, held: Held, rows: int, in_use: set[Key]) -> Slot:
        slot, evicted = self._cache.reserve(held.key, rows, in_use)
        for key in evicted:
            self._drop(key)
            metrics.EVICTIONS.inc()
        return slot

    def _inherit(self, held: Held, source: Key, count: int, slot: Slot, batch: _Batch) -> None:
        """Copy the entries that a new sequence takes over."""
        if source in batch.slots:
            # What the source was sent in this batch has to be there first.
            self._append(batch, "round")
            batch.rows.clear()
        self._cache.copy(source, slot, count)
        self._penalize(held, held.tokens[1 : count + 1])
        held.source = None
        metrics.ROWS.labels("inherited").inc(count)

    def _penalize(self, held: Held, tokens: Sequence[int]) -> None:
        if held.key not in self._penalties:
            self._penalties[held.key] = self._chain.penalties(held.opening)
        penalties = self._penalties[held.key]
        if penalties is not None:
            penalties.extend(tokens)

    def _refuse(self, held: Held, reason: str) -> None:
        held.refused = True
        self._release(held.key)
        metrics.REFUSALS.inc()
        _log.warning("sequence refused", link=held.key[0], seq=held.key[1], reason=reason)

    def _append(self, batch: _Batch, way: str) -> None:
        if batch.rows:
            # A round follows what comes by bulk, and chains start there.
            self._chain.append(batch.rows, keys_only=way == "bulk")
            metrics.ROWS.labels(way).inc(sum(len(rows.tokens) for rows in batch.rows))

    def _draft(self, batch: _Batch, answers: dict[int, Answers]) -> None:
        """Answer every wish: by lookup, by a chain, or by an empty draft where there is none."""
        requests: dict[Key, ChainRequest] = {}
        for key, (held, stop) in batch.wishes.items():
            # A chain starts from the state of an entry that was run here.
            if held.refused or batch.slots[key].hidden is None:
                answers[key[0]].drafts.append(Draft(key[1], stop, ()))
                continue
            wish, base = held.receiver.take_request(), held.receiver.real_len
            if wish is None:
                continue
            found = _look_up(held, wish.lookup)
            if wish.chain and not found:
                requests[key] = ChainRequest(
                    batch.slots[key], base, wish.chain, held.opening, self._penalties.get(key)
                )
            else:
                draft = Draft(key[1], base, found, source=DraftSource.LOOKUP)
                answers[key[0]].drafts.append(draft)
        if not requests:
            return
        guesses = self._chain.draft(list(requests.values()))
        for (key, request), guess in zip(requests.items(), guesses, strict=True):
            answers[key[0]].drafts.append(
                Draft(key[1], request.base, guess.tokens, guess.confidence)
            )

    def _end(self, key: Key) -> None:
        """Keep what others may inherit for as long as there is room."""
        if self._sequences.end(key):
            self._cache.end(key)
            self._penalties.pop(key, None)
        else:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._sequences.drop(key)
        self._release(key)

    def _release(self, key: Key) -> None:
        """Free what a sequence takes; its place among the sequences is not touched."""
        self._cache.free(key)
        self._penalties.pop(key, None)


def _look_up(held: Held, count: int) -> tuple[int, ...]:
    """What a lookup of ``count`` tokens proposes, possibly nothing."""
    if held.index is None or not count:
        return ()
    found = held.index.propose(count)
    metrics.LOOKUPS.labels("hit" if found else "miss").inc()
    return found
