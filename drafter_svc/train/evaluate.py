"""``python -m drafter_svc.train.evaluate``: acceptance of a checkpoint on prompts, offline.

The target answers greedily with its cache, or has answered in the file; one forward over prompt
and answer then gives the features, and chains are drafted from every answer position. Greedy
speculation is replayed by the chain alone, by lookup alone, and by the chain where a lookup finds
nothing. What limits acceptance is measured beside it: how sure the target is, the coverage of the
draft vocabulary, the draft length. No service is involved. JSON lines go to stdout, a table of them
to stderr.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from drafter_svc.formats.checkpoint import LoadedDrafter, load_checkpoint
from drafter_svc.train.data.greedy_answers import Text, read_texts
from drafter_svc.train.evaluation.acceptance_limits import (
    LONGEST,
    Limits,
    RoundCosts,
    limits_summary,
    print_limits,
)
from drafter_svc.train.evaluation.replay import Rounds, draft_chains, lookups, walk
from drafter_svc.train.evaluation.summary import Arm, print_table, summary
from drafter_svc.train.run.init_weights import require_fit
from drafter_svc.train.target.target import Target, load_target


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
    round_costs: list[float] = field(
        default_factory=list,
        metadata={
            "help": "milliseconds of a target forward with one token, of a chain step and of each "
            "further row of the forward: the draft length that is fastest with them is named"
        },
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
        if self.round_costs and (len(self.round_costs) != 3 or min(self.round_costs) <= 0):
            raise ValueError(f"round_costs must be three times above 0, got {self.round_costs}")

    @property
    def arms(self) -> list[Arm]:
        """The chain alone, and for each threshold lookup alone and both."""
        tried = [Arm(chain, shortest) for shortest in self.lookup for chain in (False, True)]
        return [Arm(True, None), *tried]

    @property
    def costs(self) -> RoundCosts | None:
        return RoundCosts(*self.round_costs) if self.round_costs else None


@torch.no_grad()
def evaluate(
    target: Target, loaded: LoadedDrafter, texts: Iterator[Text], settings: EvaluateSettings
) -> tuple[dict[Arm, Rounds], Limits]:
    """Replay greedy speculation of every arm on the target's answers."""
    length = settings.lookup_length or settings.draft_length
    # The same rounds end an answer in all arms, so that they can be compared.
    longest = max(settings.draft_length, length if settings.lookup else 0)
    rounds, limits = {arm: Rounds(longest) for arm in settings.arms}, Limits()
    for ids, prompt in texts:
        if len(ids) <= prompt:
            continue
        tokens = torch.tensor(ids)
        features, final = target.capture(tokens[None], loaded.config.aux_layers)
        # A chain of k drafts is the start of a longer one.
        drafted: list[list[int]] = draft_chains(
            loaded.module,
            target.embedding,
            loaded.target_ids,
            tokens,
            features[0],
            columns=torch.arange(prompt - 1, len(ids) - 1),
            length=max(settings.draft_length, LONGEST),
        ).tolist()
        limits.add(
            ids,
            prompt,
            final=final[0],
            head=target.head,
            draft_ids=loaded.target_ids,
            chains=drafted,
        )
        chains = [chain[: settings.draft_length] for chain in drafted]
        found = {
            shortest: lookups(ids, prompt, shortest=shortest, length=length)
            for shortest in settings.lookup
        }
        none: list[tuple[int, ...]] = [()] * len(chains)
        for arm, taken in rounds.items():
            looked_up = found[arm.lookup] if arm.lookup is not None else ()
            walk(taken, ids, prompt, chains if arm.chain else none, looked_up)
    return rounds, limits


def main() -> int:
    """Print JSON lines for each file: its limits, and each arm. Returns the exit code."""
    try:
        (settings,) = HfArgumentParser(
            EvaluateSettings, description=__doc__
        ).parse_args_into_dataclasses()
        loaded = load_checkpoint(settings.checkpoint, dtype=torch.bfloat16)
        target = load_target(settings.target)
        require_fit(loaded.config, target, settings.checkpoint)
        if not loaded.config.own_head:
            loaded.module.borrow_head(target.head)
        results: dict[str, dict[Arm, Rounds]] = {}
        limits: dict[str, Limits] = {}
        for path in settings.prompts:
            name = Path(path).stem
            texts = read_texts(
                path,
                target,
                count=settings.count,
                new_tokens=settings.new_tokens,
                batch=settings.batch,
            )
            results[name], limits[name] = evaluate(target, loaded, texts, settings)
            found = limits_summary(limits[name], settings.costs)
            print(json.dumps({"prompts": name, **found}), flush=True)
            for arm, rounds in results[name].items():
                print(json.dumps({"prompts": name, **summary(arm, rounds)}), flush=True)
    except (OSError, ValueError, KeyError) as error:
        print(f"drafter_svc.train.evaluate: {error}", file=sys.stderr)
        return 2
    print_table(results, sys.stderr)
    print_limits(limits, settings.costs, sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
