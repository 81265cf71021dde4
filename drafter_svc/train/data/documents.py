"""Training text as token sequences: conversations in the target's template, and plain text."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids from position 0 on; ``answer[j]`` marks tokens as the target would write them.

    Those are the answers of a conversation, and every token but the first of a plain text.
    """

    ids: list[int]
    answer: list[bool]


def encode(tokenizer: Any, record: dict[str, Any], max_length: int) -> Document:
    """Tokenize one ``{"messages": [...]}`` record with the target's chat template.

    An answer runs from the generation prompt up to and including its end token; an answer that
    was cut off (``finish_reason`` "length") has no end token of its own. The sequence is cut on
    the right only: features depend on the whole prefix. Raises ``ValueError`` when the template
    is not a prefix of itself from turn to turn.
    """
    messages = record["messages"]

    def render(count: int, prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            messages[:count], tokenize=True, add_generation_prompt=prompt, return_dict=False
        )

    ids = render(len(messages), False)
    answer = [False] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, done = render(turn, True), render(turn + 1, False)
        if ids[: len(prompt)] != prompt or ids[: len(done)] != done:
            raise ValueError("the chat template rewrites earlier turns; split the conversation")
        end = len(done)
        while end > len(prompt) and ids[end - 1] != tokenizer.eos_token_id:
            end -= 1
        if record.get("finish_reason") == "length" and turn == len(messages) - 1:
            end -= 1
        answer[len(prompt) : end] = [True] * max(0, end - len(prompt))
    return Document(ids[:max_length], answer[:max_length])


def encode_text(tokenizer: Any, text: str, max_length: int) -> list[Document]:
    """Tokenize plain text, with what the tokenizer puts before it (often nothing).

    A text of more than ``max_length`` tokens becomes several documents that each start anew.
    """
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    start = whole[: whole.index(body[0])] if body and whole[: len(body)] != body else []
    room = max_length - len(start)
    pieces = [start + body[at : at + room] for at in range(0, len(body), room)]
    return [Document(ids, [False] + [True] * (len(ids) - 1)) for ids in pieces]


def read_documents(paths: Sequence[str], tokenizer: Any, max_length: int) -> list[Document]:
    """All documents of JSON-lines files that hold something to learn.

    Raises ``ValueError`` naming the line that holds neither a conversation nor a text.
    """
    documents = []
    for path in paths:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    if "text" in record:
                        found = encode_text(tokenizer, record["text"], max_length)
                    else:
                        found = [encode(tokenizer, record, max_length)]
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    raise ValueError(
                        f'{path}:{number} is neither {{"messages": [...]}} nor {{"text": "..."}}: '
                        f"{error!r}"
                    ) from None
                # The first token that can be taught is the third: it takes two to start a chain.
                documents += [document for document in found if any(document.answer[2:])]
    return documents


def split(
    documents: Sequence[Document], held_out: int, seed: int
) -> tuple[list[Document], list[Document]]:
    """(training, held-out) with ``held_out`` documents drawn at random in the second."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    cut = max(0, len(order) - held_out)
    return [documents[i] for i in order[:cut]], [documents[i] for i in order[cut:]]


def digest(documents: Sequence[Document]) -> str:
    """SHA-256 of the token ids, hex: a run and a feature cache belong to one set of documents."""
    sha = hashlib.sha256()
    for document in documents:
        sha.update(torch.tensor([len(document.ids), *document.ids]).numpy().tobytes())
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole documents, packed one behind the other into N rows.

    ``ids`` and ``positions`` are int64 ``[N]``, ``answer`` is bool ``[N]``. Positions start at 0
    in each of the ``lengths``.
    """

    ids: Tensor
    answer: Tensor
    positions: Tensor
    lengths: tuple[int, ...]


def pack(documents: Sequence[Document], device: torch.device | str = "cpu") -> Batch:
    """One batch of ``documents``, in order."""
    lengths = tuple(len(document.ids) for document in documents)
    return Batch(
        torch.tensor([i for document in documents for i in document.ids], device=device),
        torch.tensor([a for document in documents for a in document.answer], device=device),
        torch.cat([torch.arange(length) for length in lengths]).to(device),
        lengths,
    )


def plan_batches(lengths: Sequence[int], budget: int, seed: int) -> Iterator[list[int]]:
    """One pass over documents in random order, in batches of at most ``budget`` tokens.

    A document longer than the budget is a batch of its own. The plan depends on the arguments
    only, which is what makes a run resumable at any batch.
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    group: list[int] = []
    filled = 0
    for index in order:
        if group and filled + lengths[index] > budget:
            yield group
            group, filled = [], 0
        group.append(index)
        filled += lengths[index]
    yield group
