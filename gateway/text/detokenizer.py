"""Token ids to text as they come, never splitting a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character has at most three bytes.
MAX_UNFINISHED = 3
# Tokens that are decoded again with the next one, once there are twice as many.
KEPT = 16


class Detokenizer:
    """Turns a growing list of tokens into pieces of its text.

    With a byte-level tokenizer the pieces, `flush` included, join to the text of all tokens
    decoded at once. Text that may be an unfinished character is held back.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        """`context`: tokens of whole characters, decoded in front of the others.

        Decoders of SentencePiece drop a space before the first token that they see.
        """
        self._decode = decode
        self._context = list(context)
        self._skip = len(decode(self._context))
        self._pending: list[int] = []
        self._sent = 0
        # Characters that are held back, each unfinished one as U+FFFD.
        self.held = 0

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._text(self._pending)
        stable = len(text)
        while len(text) - stable < MAX_UNFINISHED and text.endswith(REPLACEMENT, 0, stable):
            stable -= 1
        piece = text[self._sent : stable]
        self.held = len(text) - stable
        self._sent = max(self._sent, stable)
        if stable == len(text):
            self._pending, self._sent = [], 0
        elif len(self._pending) >= 2 * KEPT:
            self._trim(text)
        return piece

    def flush(self) -> str:
        piece = self._text(self._pending)[self._sent :]
        self._pending, self._sent, self.held = [], 0, 0
        return piece

    def _text(self, tokens: list[int]) -> str:
        return self._decode(self._context + tokens)[self._skip :]

    def _trim(self, text: str) -> None:
        """Forget all but the last tokens, if those mean the same without the ones before."""
        kept = self._pending[-KEPT:]
        kept_text = self._text(kept)
        sent = len(kept_text) - (len(text) - self._sent)
        if sent >= 0 and text.endswith(kept_text):
            self._pending, self._sent = kept, sent
