"""How chat and text completions write choices and log-probabilities."""

from __future__ import annotations

from typing import Any

from gateway.generation.output import OutputDelta, TokenLogprob
from gateway.text.tokenizer import TextTokenizer

# JSON has no infinity.
LEAST_LOGPROB = -9999.0


class ChatFormatter:
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

    def chunks(self, index: int, piece: OutputDelta) -> list[dict[str, Any]]:
        if piece.empty:
            return []
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
        own = self._tokenizer.token_bytes(token)
        text = self._tokenizer.token_text(token)
        return {
            "token": escape(own) if text is None else text,
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(own),
        }


class CompletionFormatter:
    """`text_completion` and its chunks, which have the same shape."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, tokenizer: TextTokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs

    def choice(
        self, index: int, text: str, logprobs: list[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": finish_reason,
        }

    def chunks(self, index: int, piece: OutputDelta) -> list[dict[str, Any]]:
        if piece.empty:
            return []
        return [self.choice(index, piece.text, list(piece.logprobs), piece.finish_reason)]

    def _logprobs(self, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return {
            "tokens": [name(self._tokenizer, entry.token) for entry in logprobs],
            "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in logprobs],
            "top_logprobs": [self._top(entry) for entry in logprobs],
            "text_offset": [self._offset(entry) for entry in logprobs],
        }

    def _offset(self, entry: TokenLogprob) -> int:
        """Return where in the text a token begins, or the character that it is a part of."""
        text = self._tokenizer.token_text(entry.token)
        return entry.begin if text is None else max(entry.begin, entry.end - len(text))

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The drawn token is always among the alternatives, and each of them has its own key.

        Of several tokens of one text, which many vocabularies have, only one can be named by it.
        """
        names: dict[str, int] = {name(self._tokenizer, entry.token): entry.token}
        top: dict[str, float] = {}
        for token, value in (dict(entry.top) | {entry.token: entry.logprob}).items():
            key = name(self._tokenizer, token)
            if names.setdefault(key, token) != token:
                key = f"token_id:{token}"
            top[key] = max(value, LEAST_LOGPROB)
        return top


def name(tokenizer: TextTokenizer, token: int) -> str:
    r"""Write a token as OpenAI's completions do: as text, parts of characters `bytes:\xf0\x9f`."""
    text = tokenizer.token_text(token)
    return f"bytes:{escape(tokenizer.token_bytes(token))}" if text is None else text


def escape(part: bytes) -> str:
    r"""Write bytes that are no whole characters: `\xf0\x9f`, ASCII as it is."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in part
    )
