"""Documents become ids with a mask over what the target wrote, and batches of a budget."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from drafter_svc.train.data.documents import (
    Document,
    digest,
    encode,
    encode_text,
    pack,
    plan_batches,
    read_documents,
    split,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def record(*contents: str, **more: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return {"messages": messages, **more}


def written(tokenizer: Any, conversation: Document) -> str:
    own = [i for i, a in zip(conversation.ids, conversation.answer, strict=True) if a]
    return str(tokenizer.decode(own))


def test_the_answer_and_its_end_token_are_the_targets(tokenizer: Any) -> None:
    conversation = encode(tokenizer, record("hi", "yo"), 100)
    assert tokenizer.decode(conversation.ids) == (
        "<|im_start|>user hi<|im_end|><|im_start|>assistant yo<|im_end|>"
    )
    assert written(tokenizer, conversation) == "yo<|im_end|>"


def test_every_answer_of_a_conversation_counts(tokenizer: Any) -> None:
    conversation = encode(tokenizer, record("a", "one", "b", "two"), 100)
    assert written(tokenizer, conversation) == "one<|im_end|>two<|im_end|>"


def test_an_answer_that_was_cut_off_has_no_end_token(tokenizer: Any) -> None:
    conversation = encode(tokenizer, record("a", "one", finish_reason="length"), 100)
    assert written(tokenizer, conversation) == "one"


def test_what_the_template_adds_after_the_end_token_is_not_the_targets(tokenizer: Any) -> None:
    original = tokenizer.chat_template
    try:
        tokenizer.chat_template = original.replace("<|im_end|>", "<|im_end|> ")
        conversation = encode(tokenizer, record("a", "one", "b", "two"), 100)
    finally:
        tokenizer.chat_template = original
    assert written(tokenizer, conversation) == "one<|im_end|>two<|im_end|>"


def test_cutting_keeps_the_prefix(tokenizer: Any) -> None:
    whole = encode(tokenizer, record("hello", "a long answer"), 100)
    cut = encode(tokenizer, record("hello", "a long answer"), 25)
    assert cut.ids == whole.ids[:25]
    assert cut.answer == whole.answer[:25]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    original = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages | length }}" + original
        with pytest.raises(ValueError, match="earlier turns"):
            encode(tokenizer, record("a", "one", "b", "two"), 100)
    finally:
        tokenizer.chat_template = original


def test_reading_skips_what_has_no_answer_and_names_bad_lines(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (record("a", "b"), record("a"))) + "\n")
    assert len(read_documents([str(path)], tokenizer, 100)) == 1
    path.write_text(json.dumps(record("a", "b")) + '\n{"text": 1}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl:2"):
        read_documents([str(path)], tokenizer, 100)
    path.write_bytes(b'{"text": "cut off here')
    with pytest.raises(ValueError, match=r"data\.jsonl:1"):
        read_documents([str(path)], tokenizer, 100)


def test_files_of_conversations_and_texts_mix(tokenizer: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text(json.dumps(record("a", "bcd")) + "\n" + json.dumps({"text": "plain"}))
    paths[1].write_text(json.dumps({"text": "more"}) + "\n")
    found = read_documents([str(path) for path in paths], tokenizer, 100)
    assert [tokenizer.decode(document.ids)[-4:] for document in found[1:]] == ["lain", "more"]
    assert found[1].answer == [False, True, True, True, True]


def test_a_long_text_becomes_documents_that_start_anew(tokenizer: Any) -> None:
    pieces = encode_text(tokenizer, "abcdefgh", 3)
    assert [tokenizer.decode(piece.ids) for piece in pieces] == ["abc", "def", "gh"]
    assert [piece.answer for piece in pieces] == [[False, True, True]] * 2 + [[False, True]]
    assert encode_text(tokenizer, "", 3) == []


def test_what_the_tokenizer_puts_first_starts_every_piece() -> None:
    def tokenizer(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        body = [ord(character) for character in text]
        return {"input_ids": [0, *body] if add_special_tokens else body}

    assert [p.ids for p in encode_text(tokenizer, "abc", 3)] == [[0, 97, 98], [0, 99]]


def test_the_digest_is_of_the_documents_and_their_borders() -> None:
    one, two = Document([1, 2, 3], [True] * 3), Document([4], [True])
    assert digest([one, two]) == digest([one, two])
    assert digest([one, two]) != digest([two, one])
    assert digest([one, two]) != digest([Document([1, 2, 3, 4], [True] * 4)])


def test_split_is_a_seeded_partition() -> None:
    conversations = [Document([i], [True]) for i in range(20)]
    training, held_out = split(conversations, 5, seed=1)
    assert len(held_out) == 5
    assert sorted(c.ids[0] for c in training + held_out) == list(range(20))
    assert split(conversations, 5, seed=1) == (training, held_out)
    assert split(conversations, 5, seed=2) != (training, held_out)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=600),
    budget=st.integers(40, 200),
    seed=st.integers(0, 9),
)
def test_batches_hold_every_document_once_within_the_budget(
    lengths: list[int], budget: int, seed: int
) -> None:
    plan = list(plan_batches(lengths, budget, seed))
    assert sorted(index for group in plan for index in group) == list(range(len(lengths)))
    for group in plan:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= budget
    for group, following in pairwise(plan):
        assert sum(lengths[i] for i in [*group, following[0]]) > budget
    assert plan == list(plan_batches(lengths, budget, seed))


def test_packed_documents_restart_their_positions() -> None:
    batch = pack([Document([5, 6, 7], [False, True, True]), Document([8, 9], [False, True])])
    assert batch.ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.answer.tolist() == [False, True, True, False, True]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.lengths == (3, 2)
