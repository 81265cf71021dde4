"""One generation in flight: its tokens, how far the target has run, and when it ends. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass

from specwire.messages import DraftSource
from verifier_svc.kv.block_pool import BlockRange
from verifier_svc.request.types import FinishReason, GenerationRequest, Timings, Usage


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What a sequence takes over: the first `count` positions of `source`, from `slot` on."""

    source: int
    slot: int
    count: int


class Sequence:
    """Tokens x_0 .. x_{L-1} are committed; the target has run positions 0 .. computed - 1.

    While decoding, computed is L - 1: a round runs x_{L-1} and the draft after it.
    """

    def __init__(
        self, seq: int, generation: GenerationRequest, eos: frozenset[int], max_model_len: int
    ) -> None:
        self.id = seq
        self.generation = generation
        self.sampling = generation.sampling
        # Whether only the argmax of each row is needed.
        self.greedy = generation.sampling.plain_greedy
        self.tokens = list(generation.tokens)
        self.output_start = generation.output_start
        self.computed = 0
        self.draft: tuple[int, ...] = ()
        self.draft_source = DraftSource.CHAIN
        self.extent: BlockRange | None = None
        self.salt = generation.cache_salt
        self.inherited: PrefixHit | None = None
        # Whether others may inherit from it.
        self.heritable = True
        self.limit = min(self.output_start + self.sampling.max_tokens, max_model_len)
        own_eos = frozenset[int]() if self.sampling.ignore_eos else eos
        self.end_tokens = own_eos | self.sampling.stop_token_ids
        self._counts: Counter[int] = Counter()
        self.usage = Usage(prompt_tokens=self.output_start)
        self.timings = Timings()
        self.arrived = self.admitted = self.first_token = 0.0
        self.finish: FinishReason | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def slot(self) -> int:
        """The cache slot of position 0."""
        assert self.extent is not None, "a sequence runs only while it owns blocks"
        return self.extent.slot

    @property
    def entries(self) -> int:
        """Entries (feature, successor token) that are real."""
        return min(self.computed, len(self.tokens) - 1)

    @property
    def decoding(self) -> bool:
        """Whether only the last committed token has not been run."""
        return self.computed == len(self.tokens) - 1

    @property
    def prefill(self) -> int:
        """Rows that a prompt which has not been run whole needs in all."""
        return len(self.tokens) - (self.inherited.count if self.inherited else 0)

    @property
    def room_for_draft(self) -> int:
        """Draft tokens that could all be accepted and still leave room for the bonus token."""
        return max(0, self.limit - len(self.tokens) - 1)

    @property
    def output_counts(self) -> Counter[int]:
        """How often each token is in the output."""
        self._counts.update(self.tokens[self.output_start + self._counts.total() :])
        return self._counts

    def inherit(self, inherited: PrefixHit) -> None:
        """Positions that another sequence has computed need not be run."""
        self.inherited = inherited
        self.computed = inherited.count
        self.usage.cached_prompt_tokens = min(inherited.count, self.output_start)

    def commit(self, drawn: Items[int], accepted: int) -> tuple[int, ...]:
        """Append the tokens drawn after `accepted` draft tokens; return those that count.

        Tokens after an end token or beyond the limit are dropped, and the sequence finishes.
        """
        self.computed = len(self.tokens) + accepted
        self.draft = ()
        room = max(1, self.limit - len(self.tokens))
        kept = tuple(drawn[:room])
        if not self.end_tokens.isdisjoint(kept):
            last = next(i for i, token in enumerate(kept) if token in self.end_tokens)
            kept = kept[: last + 1]
            self.finish = FinishReason.STOP
        elif len(kept) == room:
            self.finish = FinishReason.LENGTH
        self.tokens += kept
        self.usage.completion_tokens = len(self.tokens) - self.output_start
        return kept
