"""What messages lead to: rows into the cache, and all wishes into one batch of chains."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from drafter_svc import metrics
from drafter_svc.engine.batch import Batch, Staged, pieces_of
from drafter_svc.engine.messages import Answers, BulkMessage, RoundMessage
from drafter_svc.engine.sequences import DrafterSequence, SequenceTable
from drafter_svc.inference.chain import Chain
from drafter_svc.inference.chain_runner import ChainRequest
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.inference.kv_cache import CacheFullError, KVCache, Slab
from drafter_svc.inference.penalties import Penalties
from drafter_svc.inference.sequence_key import Key
from speckernels.device import use
from specserve import logs
from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftSource,
    ResendFrom,
    SequenceContext,
)

_log = logs.get(__name__)

_WARM_UP: Key = (-1, 0)


class Worker:
    """Sequences, their KV and penalties, kept in step. All calls come from one thread."""

    def __init__(
        self, chain: Chain, cache: KVCache, sequences: SequenceTable, max_draft_tokens: int
    ) -> None:
        self._chain = chain
        self._cache = cache
        self._sequences = sequences
        self._scratch = max_draft_tokens
        self._penalties: dict[Key, Penalties | None] = {}
        #: Width of the rows that verifiers project, where a projection is announced to them.
        self.projected: int | None = None

    @property
    def alive(self) -> bool:
        """Whether its work is recorded, which only a GPU's can be: see `Chain.alive`."""
        return self._chain.alive

    def warm_up(self) -> None:
        """Run entries and chains, greedy and drawn, so that no request pays for first calls.

        From now on the device is the calling thread's own.
        """
        use(self._chain.device)
        began = time.monotonic()
        slot, _ = self._cache.reserve(_WARM_UP, 4 + self._scratch, set())
        rows = EntryRows(slot, 0, range(4))
        # Large batches first: the memory of a recorded one is used again by those that need less.
        for size, lengths in reversed(self._chain.shapes(self._scratch)):
            # `None` is the captured width.
            for width in dict.fromkeys((None, self.projected)):
                self._chain.append([rows] * size, [self._chain.zeros(4 * size, width)])
            for length in reversed(lengths):
                for temperature in (0.0, 1.0):
                    opening = SequenceContext(0, 1, temperature=temperature)
                    self._chain.draft([ChainRequest(slot, 4, length, opening)] * size)
        self._cache.free(_WARM_UP)
        # On a GPU chains that are not recorded are what nobody wants.
        as_wanted = self._chain.alive or self._chain.device.type == "cpu"
        tell = _log.info if as_wanted else _log.warning
        tell("warmed up", seconds=round(time.monotonic() - began, 1), chains=self._chain.form)

    def report(self) -> None:
        """Tell the gauges what is held."""
        metrics.LINKS.set(self._sequences.links)
        metrics.SEQUENCES.set(len(self._sequences))
        metrics.KV_BYTES.set(self._cache.bytes_used)

    def count(self, served: Iterable[Answers]) -> None:
        """Count the drafts of a batch that was served."""
        tokens: Counter[DraftSource] = Counter()
        chains = 0
        for answers in served:
            for draft in answers.drafts:
                tokens[draft.source] += len(draft.tokens)
                chains += bool(draft.tokens) and draft.source is DraftSource.CHAIN
        for source, count in tokens.items():
            metrics.DRAFT_TOKENS.labels(source).inc(count)
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
        batch = Batch({(r.link, extend.seq) for r in rounds for extend in r.extends}, "round")
        answers: dict[int, Answers] = defaultdict(Answers)
        for message in rounds:
            for seq in message.closes:
                self._end((message.link, seq))
            features = self._chain.prepare(message.features)
            at = 0
            for extend in message.extends:
                taken = self._take(message.link, extend, features, at, batch)
                at += len(extend.tokens)
                if isinstance(taken, ResendFrom):
                    answers[message.link].needs.append(taken)
        self._append(batch)
        self._draft(batch, answers)
        return answers

    def fill(self, pieces: Sequence[BulkMessage]) -> list[CatchUpAck | None]:
        """Take bulk rows. Returns the Ack of each piece; None where the link is gone."""
        batch = Batch({(piece.link, piece.extend.seq) for piece in pieces}, "bulk")
        acks: list[tuple[DrafterSequence | ResendFrom, CatchUpAck] | None] = []
        for piece in pieces:
            if not self._sequences.has_link(piece.link):
                acks.append(None)
                continue
            extend, features = piece.extend, self._chain.prepare(piece.features)
            taken = self._take(piece.link, extend, features, 0, batch)
            held = taken.real_len if isinstance(taken, ResendFrom) else taken.receiver.real_len
            acks.append((taken, CatchUpAck(extend.seq, held, extend.stop, piece.rows)))
        self._append(batch)
        # An Ack says that the rows have been run, and how long that took.
        self._settle(batch)
        return [ack and _settled(*ack) for ack in acks]

    def _take(
        self, link: int, extend: AppendEntries, features: Tensor, at: int, batch: Batch
    ) -> DrafterSequence | ResendFrom:
        """Stage the new rows of ``extend``, whose features begin ``at`` a row, and its wish."""
        opening = extend.opening
        if opening is not None and opening.inherited and (link, opening.source) in batch.slots:
            # What it may inherit has to be there first, and to be finite.
            self._append(batch)
            self._settle(batch)
        taken = self._sequences.extend(link, extend)
        if isinstance(taken, ResendFrom):
            metrics.NEEDS.inc()
            return taken
        held, fresh = taken
        if extend.wish:
            batch.wishes[held.key] = (held, extend.stop)
        if held.refused:
            self._release(held.key)
            return held
        known = fresh.start - extend.start
        tokens = extend.tokens[known:]
        try:
            in_use = batch.in_use | {held.source} if held.source else batch.in_use
            slot = self._reserve(held, fresh.stop + self._scratch, in_use)
        except CacheFullError:
            self._refuse(held, "it does not fit into the memory for KV")
            return held
        batch.slots[held.key] = slot
        if held.source is not None:
            self._inherit(held, held.source, fresh.start, slot)
        if tokens:
            rows = EntryRows(slot, fresh.start, tokens)
            batch.staged.append(Staged(held, rows, features, at + known))
            self._penalize(held, tokens)
        return held

    def _reserve(self, held: DrafterSequence, rows: int, in_use: set[Key]) -> Slab:
        slot, evicted = self._cache.reserve(held.key, rows, in_use)
        for key in evicted:
            self._drop(key)
            metrics.EVICTIONS.inc()
        return slot

    def _inherit(self, held: DrafterSequence, source: Key, count: int, slot: Slab) -> None:
        """Copy the entries that a new sequence takes over."""
        self._cache.copy(source, slot, count)
        self._penalize(held, held.tokens[1 : count + 1])
        held.source = None
        metrics.ROWS.labels("inherited").inc(count)

    def _penalize(self, held: DrafterSequence, tokens: Sequence[int]) -> None:
        if held.key not in self._penalties:
            self._penalties[held.key] = self._chain.open_penalties(held.opening)
        penalties = self._penalties[held.key]
        if penalties is not None:
            penalties.extend(tokens)

    def _refuse(self, held: DrafterSequence, reason: str) -> None:
        held.refused = True
        self._release(held.key)
        metrics.REFUSALS.inc()
        _log.warning("sequence refused", link=held.key[0], seq=held.key[1], reason=reason)

    def _append(self, batch: Batch) -> None:
        """Run what is staged."""
        if staged := batch.take_staged():
            # A round follows what comes by bulk, and chains start there.
            rows = [entries.rows for entries in staged]
            sums = self._chain.append(rows, pieces_of(staged), keys_only=batch.way == "bulk")
            batch.unchecked.append((staged, sums))
            metrics.ROWS.labels(batch.way).inc(len(sums))

    def _settle(self, batch: Batch) -> None:
        """Refuse sequences whose features turn out not to be finite."""
        self._chain.finish()
        for held in batch.not_finite():
            if not held.refused:
                self._refuse(held, "its features are not finite")

    def _draft(self, batch: Batch, answers: dict[int, Answers]) -> None:
        """Answer every wish: by lookup, by a chain, or by an empty draft where there is none."""
        drafts: dict[Key, Draft] = {}
        requests: dict[Key, ChainRequest] = {}
        for key, (held, stop) in batch.wishes.items():
            if held.refused:
                continue
            slot, seq = batch.slots[key], key[1]
            if not slot.ready:
                # A chain starts from the state of an entry that was run here.
                drafts[key] = Draft(seq, stop, ())
                continue
            wish, base = held.receiver.take_request(), held.receiver.real_len
            if wish is None:
                continue
            found = _look_up(held, wish.lookup)
            if wish.chain and not found:
                penalties = self._penalties.get(key)
                requests[key] = ChainRequest(slot, base, wish.chain, held.opening, penalties)
            else:
                drafts[key] = Draft(seq, base, found, source=DraftSource.LOOKUP)
        guesses = self._chain.draft(list(requests.values()))
        for (key, request), guess in zip(requests.items(), guesses, strict=True):
            drafts[key] = Draft(key[1], request.base, guess.tokens, guess.confidence)
        self._settle(batch)
        for key, (held, stop) in batch.wishes.items():
            if held.refused:
                answers[key[0]].drafts.append(Draft(key[1], stop, ()))
            elif key in drafts:
                answers[key[0]].drafts.append(drafts[key])

    def _end(self, key: Key) -> None:
        """Keep what others may inherit for as long as there is room."""
        if self._sequences.end(key):
            self._cache.end(key)
            self._close_penalties(key)
        else:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._sequences.drop(key)
        self._release(key)

    def _release(self, key: Key) -> None:
        """Free what a sequence takes; its place among the sequences is not touched."""
        self._cache.free(key)
        self._close_penalties(key)

    def _close_penalties(self, key: Key) -> None:
        penalties = self._penalties.pop(key, None)
        if penalties is not None:
            self._chain.close_penalties(penalties)


def _settled(taken: DrafterSequence | ResendFrom, ack: CatchUpAck) -> CatchUpAck:
    """The Ack of a sequence that may be refused by now: nothing of it is missing then."""
    refused = isinstance(taken, DrafterSequence) and taken.refused
    return replace(ack, real_len=ack.stop) if refused else ack


def _look_up(held: DrafterSequence, count: int) -> tuple[int, ...]:
    """What a lookup of ``count`` tokens proposes, possibly nothing."""
    if held.index is None or not count:
        return ()
    found = held.index.propose(count)
    metrics.LOOKUPS.labels("hit" if found else "miss").inc()
    return found
