"""Conversations as token sequences with a loss mask, and their grouping into batches."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids from position 0 on; ``answer[j]`` says that the target itself wrote token j."""

    ids: list[int]
    answer: list[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids`` int64 and ``answer`` bool, both ``[B, T]``, padded on the right (answer False).

    Causal attention keeps padding on the right out of every real position.
    """

    ids: Tensor
    answer: Tensor


def encode(tokenizer: Any, record: dict[str, Any], max_length: int) -> Conversation:
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
    return Conversation(ids[:max_length], answer[:max_length])


def read_conversations(path: str | Path, tokenizer: Any, max_length: int) -> list[Conversation]:
    """All conversations of a JSON-lines file that hold an answer.

    Raises ``ValueError`` naming the line that is not a conversation.
    """
    conversations = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                conversation = encode(tokenizer, json.loads(line), max_length)
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path}:{number} is not a conversation: {error!r}") from None
            if any(conversation.answer):
                conversations.append(conversation)
    return conversations


def split(
    conversations: Sequence[Conversation], held_out: int, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out) with ``held_out`` conversations drawn at random in the second."""
    order = list(range(len(conversations)))
    random.Random(seed).shuffle(order)
    cut = max(0, len(order) - held_out)
    return [conversations[i] for i in order[:cut]], [conversations[i] for i in order[cut:]]


def plan_batches(lengths: Sequence[int], budget: int, seed: int) -> list[list[int]]:
    """Group sequences of similar length so that each padded batch has at most ``budget`` tokens.

    A sequence longer than the budget is a batch of its own. The plan depends on the arguments
    only, which is what makes a run resumable at any batch.
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), _POOL):
        pool = sorted(order[start : start + _POOL], key=lambda index: lengths[index])
        group: list[int] = []
        for index in pool:
            if group and (len(group) + 1) * lengths[index] > budget:
                batches.append(group)
                group = []
            group.append(index)
        batches.append(group)
    shuffler.shuffle(batches)
    return batches


def collate(conversations: Sequence[Conversation], padding_id: int = 0) -> Batch:
    """Pad on the right to the longest."""
    width = max(len(conversation.ids) for conversation in conversations)
    ids = torch.full((len(conversations), width), padding_id, dtype=torch.int64)
    answer = torch.zeros(len(conversations), width, dtype=torch.bool)
    for row, conversation in enumerate(conversations):
        ids[row, : len(conversation.ids)] = torch.tensor(conversation.ids)
        answer[row, : len(conversation.answer)] = torch.tensor(conversation.answer)
    return Batch(ids, answer)


def batches(conversations: Sequence[Conversation], budget: int, seed: int) -> Iterator[Batch]:
    """One pass over ``conversations`` in the order of ``plan_batches``."""
    for group in plan_batches([len(c.ids) for c in conversations], budget, seed):
        yield collate([conversations[index] for index in group])


# Sequences sorted by length together: large enough for little padding, small enough for shuffling.
_POOL = 256
