"""An in-process drafter whose guesses and misdeeds are scripted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from drafter_svc.inference.ngram_lookup import SuffixIndex
from specwire.entry_log import EntryReceiver
from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftBudget,
    DraftCost,
    DrafterDown,
    DrafterInfo,
    DrafterUp,
    DraftEvent,
    DraftSource,
    Proposals,
    ResendFrom,
    SequenceContext,
)
from verifier_svc.model.target import Target

# Known tokens x_0 .. x_{base} of a sequence, its opening, how many guesses are wanted.
Propose = Callable[[Sequence[int], SequenceContext, int], Iterable[int]]


def welcome_for(target: Target, **changes: object) -> DrafterInfo:
    """What a drafter made for `target` announces."""
    announced: Mapping[str, object] = {
        "checkpoint_hash": "scripted",
        "target_fingerprint": target.fingerprint,
        "aux_layer_ids": target.aux_layers,
        "target_hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": target.vocab_size,
        "max_length": target.max_position,
        "max_draft_tokens": 8,
        **changes,
    }
    return DrafterInfo(**announced)  # type: ignore[arg-type]


def _other(token: int) -> int:
    return token - 1 if token else 1


def good(texts: Iterable[Sequence[int]], wrong: float = 0.0, seed: int = 0) -> Propose:
    """Continues whichever of `texts` it has seen so far; each guess is wrong with a chance."""
    known, chance = [list(text) for text in texts], random.Random(seed)

    def propose(tokens: Sequence[int], opening: SequenceContext, count: int) -> list[int]:
        for text in known:
            if text[: len(tokens)] == list(tokens):
                guesses = text[len(tokens) : len(tokens) + count]
                return [_other(g) if chance.random() < wrong else g for g in guesses]
        return []

    return propose


def random_guesses(vocab_size: int, seed: int = 0) -> Propose:
    """Guesses anything."""
    chance = random.Random(seed)
    return lambda tokens, opening, count: [chance.randrange(vocab_size) for _ in range(count)]


def adversarial(texts: Iterable[Sequence[int]]) -> Propose:
    """The right token first and wrong ones after it, an end token among them, and too many."""
    right = good(texts)

    def propose(tokens: Sequence[int], opening: SequenceContext, count: int) -> list[int]:
        first = list(right(tokens, opening, 1))
        return [*first, 1, *map(_other, right(tokens, opening, 3 * count))]

    return propose


@dataclass
class _Held:
    opening: SequenceContext
    receiver: EntryReceiver = field(default_factory=EntryReceiver)
    tokens: list[int] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)


class ScriptedDrafter:
    """A DraftPort that keeps the drafter's side of the protocol and guesses by `propose`.

    Where its welcome has a `lookup_match`, lookups are answered as the real drafter does.
    `delay` seconds pass before each answer. While `silent`, rounds are taken and never answered.
    `unlink` and `link` lose the drafter and bring an empty one back. `evict` forgets a sequence.
    """

    def __init__(self, welcome: DrafterInfo, propose: Propose, *, delay: float = 0.0) -> None:
        self.welcome = welcome
        self.propose = propose
        self.delay = delay
        self.silent = False
        self.broken_promises: list[str] = []
        self.rounds = 0
        self.answers = 0
        # Entries that sequences took over from others.
        self.inherited = 0
        self.closed: list[int] = []
        # By sequence, of all that was ever held: known tokens and feature rows.
        self.seen: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
        self._held: dict[int, _Held] = {}
        self._ended: dict[int, _Held] = {}
        self._link = 0
        self._links = 0
        self._lock = threading.RLock()
        self._timers: list[threading.Timer] = []

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        self._deliver = deliver
        self.link()

    def link(self) -> None:
        """A new drafter is there."""
        with self._lock:
            self._links += 1
            self._link = self._links
            self._held, self._ended = {}, {}
            self._deliver(DrafterUp(self._link, self.welcome))

    def unlink(self) -> None:
        """The drafter dies."""
        with self._lock:
            self._link = 0
            self._deliver(DrafterDown("scripted"))

    def evict(self) -> None:
        """All sequences are forgotten; the link stays."""
        with self._lock:
            self._held, self._ended = {}, {}

    @property
    def held(self) -> list[int]:
        """Sequences in memory."""
        with self._lock:
            return sorted(self._held)

    async def close(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Wait for what is late."""
        for timer in self._timers:
            timer.join()

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        with self._lock:
            if link != self._link:
                return
            self.rounds += 1
            for seq in closes:
                if (ended := self._held.pop(seq, None)) is not None:
                    self._ended[seq] = ended
                self.closed.append(seq)
            drafts, needs = [], []
            for extend, rows in zip(extends, features, strict=True):
                held = self._take(extend, rows)
                if isinstance(held, ResendFrom):
                    needs.append(held)
                elif (wish := held.receiver.take_request()) is not None:
                    drafts.append(self._draft(extend.seq, held, wish))
            if extends and not self.silent:
                self._answer(Proposals(tuple(drafts), tuple(needs), DraftCost(0, 10)))

    def _draft(self, seq: int, held: _Held, wish: DraftBudget) -> Draft:
        base = held.receiver.real_len
        if wish.lookup and self.welcome.lookup_match:
            index = SuffixIndex(self.welcome.lookup_match)
            index.extend(held.tokens)
            if found := index.propose(wish.lookup):
                return Draft(seq, base, found, source=DraftSource.LOOKUP)
        guesses = tuple(self.propose(held.tokens, held.opening, wish.chain)) if wish.chain else ()
        return Draft(seq, base, guesses, (0.5,) * len(guesses))

    def bulk(self, link: int, extend: AppendEntries, features: torch.Tensor) -> None:
        with self._lock:
            if link == self._link:
                held = self._take(extend, features)
                real_len = held.real_len if isinstance(held, ResendFrom) else held.receiver.real_len
                self._answer(CatchUpAck(extend.seq, real_len, extend.stop, len(extend.tokens)))

    def _take(self, extend: AppendEntries, features: torch.Tensor) -> _Held | ResendFrom:
        if features.shape[0] != len(extend.tokens):
            self.broken_promises.append(f"{features.shape} rows for {extend}")
        held = self._held.get(extend.seq)
        if held is None:
            if extend.opening is None:
                return ResendFrom(extend.seq, 0, extend.stop)
            held = self._open(extend.opening)
            if extend.start > held.receiver.real_len:
                return ResendFrom(extend.seq, held.receiver.real_len, extend.stop)
            self._held[extend.seq] = held
        fresh = held.receiver.extend(extend.start, extend.stop, extend.wish)
        if fresh is None:
            return ResendFrom(extend.seq, held.receiver.real_len, extend.stop)
        held.tokens += extend.tokens[fresh.start - extend.start :]
        # A copy: on the wire they are bytes.
        held.rows += [*features[fresh.start - extend.start :].clone()]
        if len(held.tokens) != held.receiver.real_len + 1:
            self.broken_promises.append(f"{len(held.tokens)} tokens at {held.receiver.real_len}")
        self.seen[extend.seq] = (held.tokens, held.rows)
        return held

    def _open(self, opening: SequenceContext) -> _Held:
        source = self._held.get(opening.source) or self._ended.get(opening.source)
        if source is None:
            return _Held(opening, tokens=[opening.first_token])
        count = min(opening.inherited, source.receiver.real_len)
        self.inherited += count
        tokens, rows = source.tokens[: count + 1], source.rows[:count]
        return _Held(opening, EntryReceiver(count), tokens, rows)

    def _answer(self, event: DraftEvent) -> None:
        link = self._link

        def deliver() -> None:
            with self._lock:
                if link == self._link:
                    self.answers += isinstance(event, Proposals)
                    self._deliver(event)

        if not self.delay:
            deliver()
            return
        timer = threading.Timer(self.delay, deliver)
        self._timers.append(timer)
        timer.start()


class FlakyDrafter(ScriptedDrafter):
    """Every few rounds it dies and comes back, forgets everything, or stops answering a while."""

    def __init__(self, welcome: DrafterInfo, propose: Propose, seed: int = 0) -> None:
        super().__init__(welcome, propose)
        self._random = random.Random(seed)

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        fate = self._random.random()
        if fate < 0.1:
            self.unlink()
            self.link()
            return
        if fate < 0.2:
            self.evict()
        self.delay = 0.02 if fate > 0.9 else 0.0
        super().round(link, extends, features, closes)


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Return as soon as `condition` holds; fail if it does not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.002)
