"""``python -m drafter_svc.train.evaluate``: acceptance of a checkpoint on prompts, offline.

The target answers greedily with its cache; one forward over prompt and answer then gives the
features, and chains are drafted from every answer position. No service is involved.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from drafter_svc.checkpoint import LoadedDrafter, load_checkpoint
from drafter_svc.train.simulate import Rounds, draft_chains, walk
from drafter_svc.train.target import Target, load_target


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What to measure; every field is a command-line flag."""

    target: str = field(metadata={"help": "Hugging Face id, folder or .gguf file of the target"})
    checkpoint: str = field(metadata={"help": "folder of the drafter"})
    prompts: list[str] = field(
        metadata={"help": 'JSON-lines files with "turns"; the first turn of each is asked'}
    )
    count: int = field(default=80, metadata={"help": "prompts of each file, from its start"})
    new_tokens: int = field(default=128, metadata={"help": "longest answer"})
    draft_length: int = field(default=5, metadata={"help": "draft tokens per verification"})
    batch: int = field(default=8, metadata={"help": "prompts that are answered together"})


def read_prompts(path: str, target: Target, count: int) -> list[list[int]]:
    """Token ids of the first ``count`` first turns, in the chat template."""
    prompts: list[list[int]] = []
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            if len(prompts) == count:
                break
            message = {"role": "user", "content": json.loads(line)["turns"][0]}
            prompts.append(
                target.tokenizer.apply_chat_template(
                    [message], tokenize=True, add_generation_prompt=True, return_dict=False
                )
            )
    return prompts


@torch.no_grad()
def greedy_answers(
    target: Target, prompts: list[list[int]], new_tokens: int, batch: int
) -> Iterator[tuple[list[int], int]]:
    """(prompt and answer ids, prompt length); prompts of similar length share a batch."""
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
    target: Target, loaded: LoadedDrafter, prompts: list[list[int]], settings: EvaluateSettings
) -> Rounds:
    """Replay greedy speculation with ``settings.draft_length`` on the target's own answers."""
    rounds = Rounds(settings.draft_length)
    answers = greedy_answers(target, prompts, settings.new_tokens, settings.batch)
    for ids, prompt in answers:
        tokens = torch.tensor(ids)
        features, _ = target.capture(tokens[None], loaded.config.aux_layers)
        proposals = draft_chains(
            loaded.module,
            target.embedding,
            loaded.target_ids,
            tokens,
            features[0],
            columns=torch.arange(prompt - 1, len(ids) - 1),
            length=settings.draft_length,
        )
        walk(rounds, ids, prompt, proposals.tolist())
    return rounds


def main() -> int:
    """Print one JSON line for each file of prompts. Returns the exit code."""
    (settings,) = HfArgumentParser(
        EvaluateSettings, description=__doc__
    ).parse_args_into_dataclasses()
    try:
        loaded = load_checkpoint(settings.checkpoint, dtype=torch.bfloat16)
        target = load_target(settings.target)
        if loaded.config.target_fingerprint != target.fingerprint:
            raise ValueError(f"{settings.checkpoint} was made for another target")
        for path in settings.prompts:
            prompts = read_prompts(path, target, settings.count)
            rounds = evaluate(target, loaded, prompts, settings)
            print(json.dumps({"prompts": Path(path).stem, **summary(rounds)}), flush=True)
    except (OSError, ValueError, KeyError) as error:
        print(f"drafter_svc.train.evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def summary(rounds: Rounds) -> dict[str, object]:
    """Acceptance length (bonus included) with and without loops, and acceptance per position."""
    own = rounds.without_loops()
    return {
        "rounds": len(rounds.accepted),
        "draft_length": rounds.length,
        "acceptance_length": round(rounds.acceptance_length, 3),
        "per_position": [round(share, 3) for share in rounds.per_position],
        "rounds_without_loops": len(own.accepted),
        "acceptance_length_without_loops": round(own.acceptance_length, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
