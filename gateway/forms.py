"""How chat and text completions write choices and log-probabilities."""

from __future__ import annotations

from typing import Any

from gateway.generation import Piece, TokenLogprob
from gateway.tokenizer import TextTokenizer

# JSON has no infinity.
LEAST_LOGPROB = -9999.0


class ChatForm:
    """`chat.completion` and its chunks."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, tokenizer: TextTokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs
        self._begun: set[int] = set()

    def choice(
        self, index: int, text: str, logprobs: list[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(logprobs),
            "finish_reason": finish_reason,
        }

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        chunks = []
        if index not in self._begun:
            self._begun.add(index)
            chunks.append(self._chunk(index, {"role": "assistant", "content": ""}))
        if piece.text or piece.tokens:
            chunk = self._chunk(index, {"content": piece.text})
            chunk["logprobs"] = self._logprobs(list(piece.logprobs))
            chunks.append(chunk)
        if piece.finish_reason is not None:
            chunks.append(self._chunk(index, {}) | {"finish_reason": piece.finish_reason})
        return chunks

    def _chunk(self, index: int, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        content = [
            self._token(entry.token, entry.logprob)
            | {"top_logprobs": [self._token(*alternative) for alternative in entry.top]}
            for entry in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokenizer.token(token),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(self._tokenizer.token_bytes(token)),
        }


class CompletionForm:
    """`text_completion` and its chunks, which have the same shape."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, tokenizer: TextTokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs
        self._offsets: dict[int, int] = {}

    def choice(
        self, index: int, text: str, logprobs: list[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs),
            "finish_reason": finish_reason,
        }

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        if not (piece.text or piece.tokens or piece.finish_reason):
            return []
        return [self.choice(index, piece.text, list(piece.logprobs), piece.finish_reason)]

    def _logprobs(self, index: int, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        tokens = [self._tokenizer.token(entry.token) for entry in logprobs]
        offset = self._offsets.get(index, 0)
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in logprobs],
            "top_logprobs": [self._top(entry) for entry in logprobs],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The drawn token is always among the alternatives."""
        pairs = (*entry.top, (entry.token, entry.logprob))
        return {self._tokenizer.token(t): max(value, LEAST_LOGPROB) for t, value in pairs}
