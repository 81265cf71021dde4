"""Prompts with the target's greedy answers, made here or read from a file."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from drafter_svc.train.data.documents import encode
from drafter_svc.train.target.target import Target

#: Prompt and answer ids, and the length of the prompt.
Text = tuple[list[int], int]


def read_texts(
    path: str, target: Target, *, count: int, new_tokens: int, batch: int
) -> Iterator[Text]:
    """The first ``count`` records of a file, answered; ``batch`` of them at a time.

    Raises ``ValueError`` naming the file that has a record with neither "turns" nor "messages".
    """
    with Path(path).open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, count)]
    if not all("turns" in record or "messages" in record for record in records):
        raise ValueError(f'{path}: every record must have "turns" or "messages"')
    prompts = [first_turn(record, target) for record in records if "turns" in record]
    yield from greedy_answers(target, prompts, new_tokens, batch)
    for record in records:
        if "turns" not in record:
            yield from first_answer(record, target, new_tokens)


def first_turn(record: dict[str, Any], target: Target) -> list[int]:
    """Token ids of a record's first turn, in the chat template."""
    ids: list[int] = target.tokenizer.apply_chat_template(
        [{"role": "user", "content": record["turns"][0]}],
        tokenize=True, add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    return ids


def first_answer(record: dict[str, Any], target: Target, new_tokens: int) -> Iterator[Text]:
    """The first answer in a conversation, cut to ``new_tokens``; nothing where there is none."""
    conversation = encode(target.tokenizer, record, sys.maxsize)
    if True not in conversation.answer:
        return
    prompt = conversation.answer.index(True)
    answer = conversation.answer[prompt : prompt + new_tokens]
    length = answer.index(False) if False in answer else len(answer)
    yield conversation.ids[: prompt + length], prompt


@torch.no_grad()
def greedy_answers(
    target: Target, prompts: list[list[int]], new_tokens: int, batch: int
) -> Iterator[Text]:
    """Prompts with their answers; those of similar length share a batch."""
    end = target.tokenizer.eos_token_id
    ordered = sorted(prompts, key=len)
    for start in range(0, len(ordered), batch):
        group = ordered[start : start + batch]
        width = len(group[-1])
        ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in group])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in group])
        output = target.model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=end,
        )
        for prompt, row in zip(group, output[:, width:].tolist(), strict=True):
            answer = row[: row.index(end) + 1] if end in row else row
            yield prompt + answer, len(prompt)
