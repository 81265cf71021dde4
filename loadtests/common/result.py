"""What one request gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


class RequestFailed(Exception):
    """A request was refused or broke off; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens and when they came. Times are in seconds since the request was sent."""

    tokens: tuple[int, ...]
    seconds: float
    finish_reason: str
    # (arrival, number of tokens) of every chunk that carried tokens; empty where nothing streams.
    chunks: tuple[tuple[float, int], ...] = ()
    # The `holdcourse` object of the answer, or what a peer says of its drafts in the same words.
    report: Mapping[str, Any] = field(default_factory=dict)
    # What REST says beside the tokens; a peer, which is asked for tokens alone, does not.
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_token(self) -> float | None:
        """Time to the first token."""
        return self.chunks[0][0] if self.chunks else None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, by the answer's usage."""
        count: int = self.usage["prompt_tokens"]
        return count

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that need not be computed again, by the answer's usage."""
        count: int = self.usage["prompt_tokens_details"]["cached_tokens"]
        return count

    @property
    def gaps(self) -> list[float]:
        """Times between chunks."""
        return [later - earlier for (earlier, _), (later, _) in pairwise(self.chunks)]

    @property
    def decode_seconds(self) -> float:
        """From the first chunk of tokens to the last."""
        return self.chunks[-1][0] - self.chunks[0][0] if self.chunks else 0.0

    @property
    def time_per_token(self) -> float | None:
        """Mean time per output token after the first chunk."""
        if not self.chunks:
            return None
        later = len(self.tokens) - self.chunks[0][1]
        return self.decode_seconds / later if later else None
