"""Proof that a drafter fits its target: shapes, vocabulary, fingerprint, then the probe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.reader import read_raw_checkpoint
from drafter_svc.model.config import DrafterConfig
from drafter_svc.train.evaluation.layer_probe import LayerProbe, run_layer_probe, undecided, verdict
from drafter_svc.train.target.target import Target, load_target

_PROMPTS = (
    "Explain how a bicycle stays upright while it moves.",
    "Write a short letter to a friend about a rainy weekend.",
    "List three reasons why people learn a second language.",
    "Tell me a story about a lighthouse keeper and a lost ship.",
    "Write a Python function that returns the median of a list of numbers.",
    "A train leaves at 9:40 and arrives at 12:15. How long does the trip take?",
    "Summarize what happens when water boils.",
    "Give me a recipe for a simple vegetable soup.",
)


@dataclass(frozen=True, slots=True)
class Fit:
    """What was checked, and the reason why the drafter does not fit, if it does not.

    ``notes`` are those of ``LoadedDrafter``.
    """

    checks: tuple[str, ...]
    probe: LayerProbe | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """What people read."""
        yield from self.checks
        if self.probe is not None:
            yield from _readings(self.probe)
            yield from _variants(self.probe)
        yield ""
        yield "It fits." if self.reason is None else f"It does not fit: {self.reason}."


def _readings(probe: LayerProbe) -> Iterator[str]:
    yield ""
    yield f"First-step agreement over {probe.positions} positions, and how far the"
    yield "declared reading (0, 0) is ahead, with the paired standard error:"
    yield "aux offset  token shift  top-1  agreement  ahead by"
    for row in probe.rows:
        ahead = "" if row.is_declared else f"{row.ahead:+.3f} +- {row.error:.3f}"
        yield f"{row.offset:>10}  {row.shift:>11}  {row.top1:.3f}  {row.agreement:>9.3f}  {ahead}"


def _variants(probe: LayerProbe) -> Iterator[str]:
    yield ""
    yield "Agreement in two chain steps with other values in config.json, likewise:"
    yield "step 1  step 2  ahead by           value"
    for row in probe.variants:
        ahead = "" if row is probe.variants[0] else f"{row.ahead:+.4f} +- {row.error:.4f}"
        yield f"{row.steps[0]:>6.3f}  {row.steps[1]:>6.3f}  {ahead:<17}  {row.name}"
    open_ones = undecided(probe)
    if open_ones:
        yield f"Not told apart from what is declared: {'; '.join(open_ones)}."


def validate(
    path_or_id: str, target_name: str, given: UserOverrides, prompts: str | None, tokens: int
) -> Fit:
    """Compare a checkpoint with a target; ``prompts`` is a file of one prompt a line.

    Raises ``CheckpointError``, ``ValueError`` and ``OSError`` for what cannot be read.
    """
    if tokens < 8:
        raise ValueError(f"--tokens is {tokens}, the probe needs answers of at least 8")
    texts = _PROMPTS if prompts is None else _read_prompts(prompts)
    named = read_raw_checkpoint(path_or_id).facts.target_fingerprint
    target = load_target(target_name)
    given = replace(given, target_fingerprint=named or target.fingerprint)
    loaded = load_checkpoint(path_or_id, dtype=torch.float32, given=given)
    checks, reason = compare(loaded.config, target, named)
    if reason is not None:
        return Fit(tuple(checks), reason=reason, notes=loaded.notes)
    if not loaded.config.own_head:
        loaded.module.borrow_head(target.head)
    probe = run_layer_probe(loaded, target, _answers(target, texts, tokens))
    return Fit(tuple(checks), probe, verdict(probe), loaded.notes)


def compare(
    config: DrafterConfig, target: Target, named: str | None
) -> tuple[list[str], str | None]:
    """Lines that say what agrees, and the first difference.

    ``named`` is the fingerprint that the checkpoint itself names, if it does.
    """
    own = target.config
    vocab, width = target.embedding.weight.shape
    pairs = [
        ("vocabulary", config.vocab_size, vocab),
        ("target_hidden_size", config.target_hidden_size, width),
    ]
    checks: list[str] = []
    for name, said, found in pairs:
        if said != found:
            return checks, f"{name} is {said} in the checkpoint and {found} in the target"
        checks.append(f"{name}: {said}")
    if config.aux_layers[-1] > own.num_hidden_layers:
        last = config.aux_layers[-1]
        return checks, f"aux layer {last} is not among the target's {own.num_hidden_layers}"
    checks.append(f"aux layers: {list(config.aux_layers)} of {own.num_hidden_layers}")
    if named is not None and named != target.fingerprint:
        return checks, (
            f"the checkpoint was made for target {named[:12]}, this one is "
            f"{target.fingerprint[:12]}"
        )
    checks.append(f"fingerprint: {'the same' if named else 'the checkpoint names none'}")
    return checks, None


@torch.no_grad()
def _answers(target: Target, texts: Sequence[str], tokens: int) -> list[tuple[Tensor, int]]:
    """Each prompt with the target's greedy answer, int64 ``[T]``, and the prompt's length."""
    prompts = [_prompt(target.tokenizer, text) for text in texts]
    width = max(len(prompt) for prompt in prompts)
    # All at once, padded on the left: a batch reads the target's weights once for each token.
    ids = torch.stack([functional.pad(p, (width - len(p), 0)) for p in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(width) >= width - lengths[:, None]
    ends = target.model.generation_config.eos_token_id
    rows = target.model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    answers = []
    for prompt, row in zip(prompts, rows, strict=True):
        answer = row[width:]
        ended = torch.isin(answer, torch.tensor([] if ends is None else ends)).nonzero()
        stop = int(ended[0]) + 1 if len(ended) else len(answer)
        answers.append((torch.cat([prompt, answer[:stop]]), len(prompt)))
    return answers


def _prompt(tokenizer: Any, text: str) -> Tensor:
    """int64 ``[T]``, in the target's chat template if it has one."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    ids: Tensor = tokenizer(
        text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template
    ).input_ids[0]
    return ids


def _read_prompts(name: str) -> list[str]:
    lines = [line.strip() for line in Path(name).read_text().splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"--prompts: {name} has no line of text")
    return prompts
