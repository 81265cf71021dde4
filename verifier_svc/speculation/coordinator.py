"""The verifier's side of drafting: what is sent for which sequence, and what came back."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Items
from heapq import nsmallest
from itertools import compress

import torch

from specwire.entry_log import EntrySender
from specwire.limits import MAX_SHORT_BYTES
from specwire.messages import (
    NO_DRAFT,
    AppendEntries,
    CatchUpAck,
    DraftBudget,
    DrafterDown,
    DrafterInfo,
    DrafterUp,
    DraftEvent,
    DraftPort,
    DraftSource,
    Proposals,
)
from verifier_svc.draft_length.acceptance_model import PROBED
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.draft_length.two_batch_overlap import TwoBatchOverlap
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.request.sequence import Sequence
from verifier_svc.speculation.draft_stream import ROUND_ROWS, DraftStream
from verifier_svc.speculation.pending_drafts import DraftRequest, PendingDrafts

logger = logging.getLogger(__name__)

# Rows of a bulk message at most, and their bytes: it has an opening with up to 1024 biases beside.
_BULK_ROWS, _BULK_BYTES = 64, MAX_SHORT_BYTES - (16 << 10)
# Bytes of bulk rows on their way: at most, and at first.
_WINDOW_BYTES, _FIRST_WINDOW_BYTES = 8 << 20, 1 << 19


class DraftCoordinator:
    """Feeds a drafter and gathers its drafts. Never blocks: time is passed in."""

    def __init__(
        self,
        port: DraftPort[torch.Tensor] | None,
        policy: DraftLengthController,
        cache: KVCache,
        deadline: float,
        devices: Collection[str],
    ) -> None:
        """Take the longest wait for a draft, in seconds, and the names of the target's devices."""
        self._port = port
        self._policy = policy
        self._cache = cache
        self._deadline = deadline
        self._devices = devices
        self._cohorts = TwoBatchOverlap()
        self._feeds: dict[int, DraftStream] = {}
        self._closes: list[int] = []
        # Bulk rows that are not acknowledged, by sequence.
        self._unacknowledged: Counter[int] = Counter()
        self._window = _FIRST_WINDOW_BYTES
        self._link = 0
        self.welcome: DrafterInfo | None = None
        self.gathering = PendingDrafts()
        #: Decoding sequences that sit out the next step.
        self.resting = frozenset[int]()

    def open(self, sequence: Sequence) -> None:
        """Drafts are wanted for a sequence from now on."""
        if self._port is not None and sequence.generation.max_draft_tokens:
            entries = sequence.inherited.count - 1 if sequence.inherited else 0
            sender = EntrySender(ROUND_ROWS, entries)
            self._feeds[sequence.id] = DraftStream(
                sequence, sender, self._policy.new_record(), entries
            )

    def close(self, seq: int) -> None:
        """A sequence has ended."""
        feed = self._feeds.pop(seq, None)
        if feed is None:
            return
        feed.score()
        self.gathering.drop(seq)
        # Bulk rows that arrived after the Close would open the sequence again: their
        # acknowledgement closes it.
        if self.welcome is not None and not self._unacknowledged[seq]:
            self._closes.append(seq)

    def recapture(self) -> None:
        """Features come from other layers from now on: sequences in flight stay plain."""
        for feed in self._feeds.values():
            feed.complete = feed.sequence.computed == 0

    def receive(self, event: DraftEvent, arrived: float) -> None:
        """Take what the drafter said, and when it arrived."""
        if isinstance(event, Proposals):
            for draft in event.drafts:
                if (feed := self._feeds.get(draft.seq)) and self.welcome is not None:
                    feed.take(draft, self.welcome, self._policy.price)
                    if not feed.sender.outstanding:
                        self.gathering.settle(draft.seq)
            for need in event.needs:
                if feed := self._feeds.get(need.seq):
                    feed.sender.need(need)
                    self.gathering.settle(need.seq)
            self._observe_answer(event, arrived)
        elif isinstance(event, CatchUpAck):
            self._acknowledge(event)
        elif isinstance(event, DrafterUp):
            self._link = event.link
            self._relink(event.welcome)
        elif isinstance(event, DrafterDown):
            self._relink(None)

    def _acknowledge(self, ack: CatchUpAck) -> None:
        self._policy.observe_rows(ack.rows, ack.compute_us * 1e-6)
        self._unacknowledged[ack.seq] -= ack.rows
        if self._unacknowledged[ack.seq] <= 0:
            del self._unacknowledged[ack.seq]
        if feed := self._feeds.get(ack.seq):
            feed.sender.acknowledge(ack)
        elif self._port is not None and ack.seq not in self._unacknowledged:
            self._port.round(self._link, (), (), (ack.seq,))

    def _observe_answer(self, answer: Proposals, arrived: float) -> None:
        chains = (len(d.tokens) for d in answer.drafts if d.source is DraftSource.CHAIN)
        length = max(chains, default=0)
        for request in self.gathering.answered(draft.seq for draft in answer.drafts):
            request.cost = answer.cost
            seconds = arrived - request.started
            if request.queues:
                seconds -= min(answer.cost.queue_us * 1e-6, seconds)
            self._policy.observe_draft(length, seconds, awaited=bool(request.awaited))

    def observe(self, seq: int) -> None:
        """Learn from the draft of a sequence that has committed a round."""
        if feed := self._feeds.get(seq):
            feed.score()

    def send(self, sequences: Items[Sequence], now: float) -> None:
        """After a step: stream new features, ask for the drafts of who ran, choose who rests."""
        rested, self.resting = self.resting, frozenset()
        if self._port is None or self.welcome is None:
            return
        feeds = [feed for s in sequences if (feed := self._feeds.get(s.id)) and feed.complete]
        for feed in feeds:
            feed.sender.commit(feed.sequence.entries)
        decoding = [feed for feed in feeds if feed.sequence.decoding]
        if self._policy.rests(len(decoding)):
            self.gathering.clear()
            return
        self._judge(feeds, max(1, len(decoding)))
        self._stream(feeds, decoding)
        ids = [sequence.id for sequence in sequences if sequence.decoding]
        self._ask(decoding, now, rested, prompts=len(ids) < len(sequences))
        self.resting = self._cohorts.rest(ids, self._policy.cohort_gain)

    def _judge(self, feeds: Items[DraftStream], size: int) -> None:
        """Find out who is worth the rows that it lacks, in a batch of `size`."""
        dear = False
        for feed in feeds:
            lacks = feed.lacks
            feed.affordable = not lacks or self._policy.affords(
                feed.record, lacks, feed.remaining, size
            )
            dear |= not feed.affordable
        if dear:
            self._policy.doubt_rows()

    def _stream(self, feeds: Items[DraftStream], decoding: Items[DraftStream]) -> None:
        """Send what a round does not carry, as far as drafts will be made from it.

        To take it in slows down a target that shares the drafter's cores. While drafts do not pay,
        only sequences that are probed get through; once they do, more and more each round, but a
        prompt beside others once it is run: drafts may not pay any more by then.
        """
        if decoding and not self._policy.rows_are_free:
            feeds = decoding
        feeds = [feed for feed in feeds if feed.affordable]
        if self._policy.drafts:
            self._window = min(2 * self._window, _WINDOW_BYTES)
        else:
            self._window = _FIRST_WINDOW_BYTES
            feeds = [feed for feed in feeds if feed.wanted][:PROBED]
        for feed in feeds:
            if feed.sender.lags:
                self._send_bulk(feed)

    def _ask(
        self, feeds: Items[DraftStream], now: float, rested: Collection[int], *, prompts: bool
    ) -> None:
        assert self._port is not None
        assert self.welcome is not None
        extends: list[AppendEntries] = []
        awaited: list[int] = []
        for feed, chosen, wish in self._choose(feeds, rested, prompts=prompts):
            self.gathering.drop(feed.sequence.id)
            feed.wanted = feed.wanted or bool(wish)
            if wish and (span := feed.sender.next_round()) is not None:
                feed.asked = wish
                extends.append(feed.extend(span, wish))
                # Nobody waits for what is asked only to keep the measurements fresh.
                if (wish.chain and chosen.chain) or (wish.lookup and chosen.lookup):
                    awaited.append(feed.sequence.id)
        if extends or self._closes:
            features = [self._features(extend) for extend in extends]
            self._port.round(self._link, extends, features, self._closes)
            self._closes = []
        longest = max((extend.wish.chain for extend in extends), default=0)
        # A line through longer chains may say that a lookup takes no time at all.
        known = self._policy.expected_draft(max(1, longest))
        patience = min(self._deadline, 4 * known + 0.002) if known else self._deadline
        request = DraftRequest(frozenset(awaited), now, now + patience, longest, bool(rested))
        self.gathering.ask((extend.seq for extend in extends), request)

    def _choose(
        self, feeds: Items[DraftStream], rested: Collection[int], *, prompts: bool
    ) -> Iterator[tuple[DraftStream, DraftBudget, DraftBudget]]:
        """Of those who ran, what is chosen and what to ask for; the choice is one for all."""
        assert self.welcome is not None
        cohorts = 2 if rested else 1
        most = self.welcome.max_draft_tokens
        if prompts:
            most = min(most, self._policy.beside_prompts(len(feeds), cohorts))
        caps = [feed.caps(self.welcome, most) if feed.affordable else NO_DRAFT for feed in feeds]
        ran = [feed.sequence.id not in rested for feed in feeds]
        ready = [
            feed.sender.ready or not (now and feed.affordable)
            for feed, now in zip(feeds, ran, strict=True)
        ]
        records = [feed.record for feed in feeds]
        wishes = self._policy.choose(records, caps, ready, cohorts)
        feeds, wishes = list(compress(feeds, ran)), list(compress(wishes, ran))
        caps = list(compress(caps, ran))
        asks = self._policy.probe(wishes, caps, _probed_first(feeds))
        return zip(feeds, wishes, asks, strict=True)

    def _send_bulk(self, feed: DraftStream) -> None:
        assert self._port is not None
        assert self.welcome is not None
        row_bytes = self._cache.features.shape[1] * self._cache.features.element_size()
        if feed.sender.entries > self.welcome.max_length:
            return
        rows = max(1, min(_BULK_ROWS, _BULK_BYTES // row_bytes))
        while not (under_way := self._unacknowledged.total()) or (
            (under_way + rows) * row_bytes <= self._window
        ):
            span = feed.sender.next_bulk(rows)
            if span is None:
                return
            extend = feed.extend(span)
            self._unacknowledged[extend.seq] += len(span)
            self._port.bulk(self._link, extend, self._features(extend))

    def _features(self, extend: AppendEntries) -> torch.Tensor:
        slot = self._feeds[extend.seq].sequence.slot
        return self._cache.read_features(slot, extend.start, extend.stop)

    def _relink(self, welcome: DrafterInfo | None) -> None:
        self.welcome = welcome
        if welcome is not None:
            apart = bool(welcome.device) and welcome.device not in self._devices
            self._policy.expect(welcome.expected_acceptance, apart=apart)
        self.gathering.clear()
        self._unacknowledged.clear()
        self._window = _FIRST_WINDOW_BYTES
        self._closes = []
        for feed in self._feeds.values():
            feed.sender.reset()
            feed.sequence.draft = ()
            feed.proposed = None


def _probed_first(feeds: Items[DraftStream]) -> Iterator[int]:
    """Places of what is fed already, then of what is the least behind, the newest first; few."""

    def key(place: int) -> tuple[bool, bool, int, int]:
        feed = feeds[place]
        return not feed.affordable, not feed.wanted, feed.lacks, -place

    yield from nsmallest(PROBED, range(len(feeds)), key)
