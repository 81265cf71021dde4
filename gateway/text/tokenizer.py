"""The model's tokenizer, read from the files that a verifier sends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from gateway.offload import LARGE, aside


class TokenizerError(ValueError):
    """Files from which no tokenizer can be built. The message is one sentence."""


class TextTokenizer:
    """Text to token ids and back."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        try:
            source = files["tokenizer.json"].decode()
            self._tokenizer: Any = Tokenizer.from_str(source)
        except KeyError:
            raise TokenizerError("the verifier sent no tokenizer.json.") from None
        except Exception as error:  # the library raises nothing more precise
            raise TokenizerError(f"tokenizer.json cannot be read: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        decoder = json.loads(source).get("decoder")
        self._kinds = set(_kinds(decoder))

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Return the tokens of each text."""
        size = sum(map(len, texts))
        return await aside(size, self._encode, texts, add_special_tokens)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        # encode_batch lets go of the GIL, encode does not; fast leaves out where tokens stand.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        decode = self._tokenizer.decode if len(ids) < LARGE else self._decode_long
        text: str = decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def _decode_long(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        # As with encode, only the batch lets go of the GIL.
        [text] = self._tokenizer.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return str(text)

    def token_text(self, token: int) -> str | None:
        """Return the text of one token; None if its bytes are no whole characters."""
        try:
            return self.token_bytes(token).decode()
        except UnicodeDecodeError:
            return None

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one token has within a text."""
        piece: str | None = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return piece.encode()
        if "ByteLevel" in self._kinds and all(char in BYTE_OF for char in piece):
            return bytes(BYTE_OF[char] for char in piece)
        if "ByteFallback" in self._kinds and len(piece) == 6 and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        if "ByteFallback" in self._kinds:
            return piece.replace("\u2581", " ").encode()
        # Decoders of other kinds drop or add spaces at the beginning of a text.
        whole = self.decode([*self.letter, token], skip_special_tokens=False)
        return whole.removeprefix(self._letter_text).encode()

    @cached_property
    def letter(self) -> list[int]:
        """Tokens of a text that begins with a letter: a context for `Detokenizer`."""
        return list(self._tokenizer.encode("a", add_special_tokens=False).ids)

    @cached_property
    def _letter_text(self) -> str:
        return self.decode(self.letter, skip_special_tokens=False)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())


def _kinds(decoder: object) -> Iterator[str]:
    """The kinds of decoder in a pipeline of them."""
    if isinstance(decoder, Mapping):
        yield str(decoder.get("type"))
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_of()
