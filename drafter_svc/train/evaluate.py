"""``python -m drafter_svc.train.evaluate``: acceptance of a checkpoint on prompts, offline.

The target answers greedily with its cache, or has answered in the file; one forward over prompt
and answer then gives the features, and chains are drafted from every answer position. Greedy
speculation is replayed by the chain alone, by lookup alone, and by the chain where a lookup finds
nothing. No service is involved. JSON lines go to stdout, a table of them to stderr.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from drafter_svc.checkpoint import LoadedDrafter, load_checkpoint
from drafter_svc.train.data import encode
from drafter_svc.train.initial import require_fit
from drafter_svc.train.simulate import Rounds, draft_chains, lookups, walk
from drafter_svc.train.summary import Arm, print_table, summary
from drafter_svc.train.target import Target, load_target

#: Prompt and answer ids, and the length of the prompt.
Text = tuple[list[int], int]


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What to measure; every field is a command-line flag."""

    target: str = field(metadata={"help": "Hugging Face id, folder or .gguf file of the target"})
    checkpoint: str = field(metadata={"help": "folder of the drafter"})
    prompts: list[str] = field(
        metadata={
            "help": 'JSON-lines files: "turns", of which the first is asked, or "messages" with '
            "the target's answers, of which the first is replayed"
        }
    )
    count: int = field(default=80, metadata={"help": "records of each file, from its start"})
    new_tokens: int = field(default=256, metadata={"help": "longest answer"})
    draft_length: int = field(default=5, metadata={"help": "draft tokens per verification"})
    lookup: list[int] = field(
        default_factory=list,
        metadata={"help": "shortest repeated suffixes to try lookup with, beside the chain alone"},
    )
    lookup_length: int = field(
        default=0, metadata={"help": "draft tokens of a lookup; 0: as many as of a chain"}
    )
    batch: int = field(default=8, metadata={"help": "prompts that are answered together"})

    def __post_init__(self) -> None:
        for name in ("count", "new_tokens", "draft_length", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lookup_length < 0:
            raise ValueError(f"lookup_length must not be negative, got {self.lookup_length}")
        if any(shortest < 1 for shortest in self.lookup):
            raise ValueError(f"lookup must be at least 1, got {min(self.lookup)}")

    @property
    def arms(self) -> list[Arm]:
        """The chain alone, and for each threshold lookup alone and both."""
        tried = [Arm(chain, shortest) for shortest in self.lookup for chain in (False, True)]
        return [Arm(True, None), *tried]


def read_texts(path: str, target: Target, settings: EvaluateSettings) -> Iterator[Text]:
    """The first ``settings.count`` records of a file, answered.

    Raises ``ValueError`` naming the file that has a record with neither "turns" nor "messages".
    """
    with Path(path).open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, settings.count)]
    if not all("turns" in record or "messages" in record for record in records):
        raise ValueError(f'{path}: every record must have "turns" or "messages"')
    prompts = [first_turn(record, target) for record in records if "turns" in record]
    yield from greedy_answers(target, prompts, settings.new_tokens, settings.batch)
    for record in records:
        if "turns" not in record:
            yield from first_answer(record, target, settings.new_tokens)


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


@torch.no_grad()
def evaluate(
    target: Target, loaded: LoadedDrafter, texts: Iterator[Text], settings: EvaluateSettings
) -> dict[Arm, Rounds]:
    """Replay greedy speculation of every arm on the target's answers."""
    length = settings.lookup_length or settings.draft_length
    # The same rounds end an answer in all arms, so that they can be compared.
    longest = max(settings.draft_length, length if settings.lookup else 0)
    rounds = {arm: Rounds(longest) for arm in settings.arms}
    for ids, prompt in texts:
        if len(ids) <= prompt:
            continue
        chains = _chains(target, loaded, ids, prompt, settings.draft_length)
        found = {
            shortest: lookups(ids, prompt, shortest=shortest, length=length)
            for shortest in settings.lookup
        }
        none: list[tuple[int, ...]] = [()] * len(chains)
        for arm, taken in rounds.items():
            looked_up = found[arm.lookup] if arm.lookup is not None else ()
            walk(taken, ids, prompt, chains if arm.chain else none, looked_up)
    return rounds


def _chains(
    target: Target, loaded: LoadedDrafter, ids: list[int], prompt: int, length: int
) -> list[list[int]]:
    tokens = torch.tensor(ids)
    features, _ = target.capture(tokens[None], loaded.config.aux_layers)
    chains: list[list[int]] = draft_chains(
        loaded.module,
        target.embedding,
        loaded.target_ids,
        tokens,
        features[0],
        columns=torch.arange(prompt - 1, len(ids) - 1),
        length=length,
    ).tolist()
    return chains


def main() -> int:
    """Print one JSON line for each file of prompts and arm. Returns the exit code."""
    try:
        (settings,) = HfArgumentParser(
            EvaluateSettings, description=__doc__
        ).parse_args_into_dataclasses()
        loaded = load_checkpoint(settings.checkpoint, dtype=torch.bfloat16)
        target = load_target(settings.target)
        require_fit(loaded.config, target, settings.checkpoint)
        results: dict[str, dict[Arm, Rounds]] = {}
        for path in settings.prompts:
            name = Path(path).stem
            results[name] = evaluate(target, loaded, read_texts(path, target, settings), settings)
            for arm, rounds in results[name].items():
                print(json.dumps({"prompts": name, **summary(arm, rounds)}), flush=True)
    except (OSError, ValueError, KeyError) as error:
        print(f"drafter_svc.train.evaluate: {error}", file=sys.stderr)
        return 2
    print_table(results, sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
