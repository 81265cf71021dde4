"""Text from tokens, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gateway.text.detokenizer import KEPT, Detokenizer
from gateway.text.tokenizer import BYTE_OF


def byte_level() -> Tokenizer:
    """A token for every byte, and a few for more; two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "he", "hello", "Ġa", "ðŁ", "âĤ"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|other|>"])
    return tokenizer


TOKENIZER = byte_level()
SIZE = TOKENIZER.get_vocab_size()
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}
IDS = st.lists(st.integers(0, SIZE - 1), max_size=4 * KEPT)


def decoder(skip: bool) -> Callable[[list[int]], str]:
    return lambda ids: TOKENIZER.decode(ids, skip_special_tokens=skip)


def ids_of(tokenizer: Tokenizer, words: Iterable[str]) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[word] for word in words]


def of(text: str) -> list[int]:
    """A token for each byte."""
    return ids_of(TOKENIZER, [CHAR_OF[byte] for byte in text.encode()])


@given(ids=IDS, skip=st.booleans())
@example(ids=of("é🙂€") * 20, skip=True)
@example(ids=[of("🙂")[0]] * 50 + of("🙂"), skip=True)
def test_pieces_join_to_the_whole(ids: list[int], skip: bool) -> None:
    decode = decoder(skip)
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join([*pieces, detokenizer.flush()]) == decode(ids)


@given(text=st.text(max_size=60), context=st.text(max_size=10))
def test_characters_come_whole(text: str, context: str) -> None:
    detokenizer = Detokenizer(decoder(True), of(context))
    shown = ""
    for token in of(text):
        shown += detokenizer.push(token)
        assert text.startswith(shown)
    assert shown + detokenizer.flush() == text


@given(ids=IDS)
def test_little_is_held_back(ids: list[int]) -> None:
    decode = decoder(False)
    detokenizer = Detokenizer(decode)
    shown = ""
    for i, token in enumerate(ids):
        shown += detokenizer.push(token)
        assert len(decode(ids[: i + 1])) - len(shown) <= 3


def test_work_for_a_token_does_not_grow() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decoder(True)(ids)

    for ids in (of("hello ") * 300, of("🙂")[:1] * 2000, of("€") * 700):
        detokenizer = Detokenizer(decode)
        for token in ids:
            detokenizer.push(token)
    assert longest <= 4 * KEPT


def sentencepiece() -> Tokenizer:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Paris", "is", "▁is", "."]
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
    return tokenizer


def test_a_space_before_the_first_token_is_kept() -> None:
    tokenizer = sentencepiece()
    ids = ids_of(tokenizer, ("▁is", "▁Paris", ".", "▁is"))
    detokenizer = Detokenizer(lambda i: tokenizer.decode(i), ids[:1])
    assert "".join(map(detokenizer.push, ids[1:])) == " Paris. is"


def test_bytes_as_tokens_wait_for_their_character() -> None:
    tokenizer = sentencepiece()
    ids = ids_of(tokenizer, (f"<0x{byte:02X}>" for byte in "東京".encode()))
    detokenizer = Detokenizer(lambda i: tokenizer.decode(i))
    assert [detokenizer.push(token) for token in ids] == ["", "", "東", "", "", "京"]
