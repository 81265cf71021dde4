"""Tokens in log-probabilities: each keeps a name of its own, and a place in the text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gateway.api.openai_format import ChatFormatter, CompletionFormatter
from gateway.generation.output import ChoiceOutput, TokenLogprob
from gateway.text.detokenizer import Detokenizer
from gateway.text.stop_strings import StopFinder
from gateway.text.tokenizer import TextTokenizer
from specwire.tensor import pack_floats
from specwire.v1 import verifier_pb2 as pb

SPECIAL = "<|end|>"


def byte_level() -> TextTokenizer:
    """Every byte is a token, and so are words and beginnings of characters."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġa", "ðŁ", "ĠðŁ", "\\", "âĤ"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(dict.fromkeys(words))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SPECIAL])
    return TextTokenizer({"tokenizer.json": tokenizer.to_str().encode()})


def byte_fallback() -> TextTokenizer:
    """As SentencePiece has it: bytes besides words, so that several tokens have one text."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é", "▁é", "\n"]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([SPECIAL])
    return TextTokenizer({"tokenizer.json": tokenizer.to_str().encode()})


def metaspace() -> TextTokenizer:
    """Words that may begin with a space, which is dropped before the first."""
    words = ["<unk>", "a", "▁a", "is", "▁is", "▁"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([SPECIAL])
    return TextTokenizer({"tokenizer.json": tokenizer.to_str().encode()})


TOKENIZERS = {form.__name__: form() for form in (byte_level, byte_fallback, metaspace)}


def size(tokenizer: TextTokenizer) -> int:
    count: int = tokenizer._tokenizer.get_vocab_size()
    return count


def run(tokenizer: TextTokenizer, ids: Sequence[int]) -> tuple[str, list[TokenLogprob]]:
    """The text of tokens and their log-probabilities, as a stream brings them."""
    generation = ChoiceOutput(
        [0],
        max_tokens=len(ids) + 1,
        min_tokens=0,
        end_ids=(),
        detokenizer=Detokenizer(
            lambda part: tokenizer.decode(part, skip_special_tokens=True), tokenizer.letter
        ),
        stops=StopFinder(()),
    )
    pieces = []
    for number, token in enumerate(ids):
        tokens = pb.Tokens(start=1 + number, ids=[token])
        tokens.logprobs.drawn.CopyFrom(pack_floats([-1.0]))
        pieces.append(generation.receive(pb.GenerateResponse(number=number, tokens=tokens)))
    pieces.append(generation.conclude())
    return "".join(p.text for p in pieces), [entry for p in pieces for entry in p.logprobs]


def completion(tokenizer: TextTokenizer, logprobs: list[TokenLogprob]) -> dict[str, list[object]]:
    found: dict[str, list[object]] = CompletionFormatter(tokenizer, True).choice(
        0, "", logprobs, None
    )["logprobs"]
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_no_alternative_is_lost(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    # Beyond the tokenizer's tokens are those that a padded output layer has.
    ids = st.integers(0, size(tokenizer) + 3)
    top = data.draw(st.lists(ids, min_size=5, max_size=5, unique=True))
    drawn = data.draw(st.sampled_from(top) | ids)
    pairs = tuple((token, -float(i)) for i, token in enumerate(top))
    entry = TokenLogprob(drawn, dict(pairs).get(drawn, -9.0), pairs)
    found = completion(tokenizer, [entry])
    [alternatives], [token] = found["top_logprobs"], found["tokens"]
    assert isinstance(alternatives, dict)
    assert sorted(alternatives.values()) == sorted((dict(pairs) | {drawn: entry.logprob}).values())
    assert alternatives[token] == entry.logprob
    [chat] = ChatFormatter(tokenizer, True).choice(0, "", [entry], None)["logprobs"]["content"]
    assert bytes(chat["bytes"]) == tokenizer.token_bytes(drawn)
    assert len(chat["top_logprobs"]) == 5


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_offsets_are_where_the_text_has_the_token(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, size(tokenizer) - 1), min_size=1, max_size=40))
    text, logprobs = run(tokenizer, ids)
    offsets = completion(tokenizer, logprobs)["text_offset"]
    assert len(offsets) == len(ids)
    for token, offset in zip(ids, offsets, strict=True):
        assert isinstance(offset, int)
        own = tokenizer.token_text(token)
        if own is None:
            assert 0 <= offset < len(text)
        elif own != SPECIAL:
            # Among bytes that make no character, byte fallback shows those of ASCII as broken, too.
            broken = "\ufffd" if name == "byte_fallback" and len(own) == 1 else own
            assert text[offset : offset + len(own)] in (own, broken)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_parts_of_a_character_are_written_as_bytes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    by_byte = {tokenizer.token_bytes(token): token for token in range(size(tokenizer))}
    ids = [by_byte[bytes([byte])] for byte in "a🙂é".encode()]
    text, logprobs = run(tokenizer, ids)
    found = completion(tokenizer, logprobs)
    assert text == "a🙂é"
    assert found["tokens"] == [
        "a",
        r"bytes:\xf0",
        r"bytes:\x9f",
        r"bytes:\x99",
        r"bytes:\x82",
        r"bytes:\xc3",
        r"bytes:\xa9",
    ]
    assert found["text_offset"] == [0, 1, 1, 1, 1, 2, 2]
    content = ChatFormatter(tokenizer, True).choice(0, text, logprobs, None)["logprobs"]["content"]
    assert [entry["token"] for entry in content[:3]] == ["a", r"\xf0", r"\x9f"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == text


def test_ascii_before_a_part_of_a_character_stays_readable() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token = tokenizer._tokenizer.token_to_id("ĠðŁ")
    assert completion(tokenizer, [TokenLogprob(token, -1.0, ())])["tokens"] == [r"bytes: \xf0\x9f"]
