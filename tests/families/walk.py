"""What becomes of a family: it is exact, or it is refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from specserve.model_source import ModelSource
from specserve.settings import StartError
from tests.families.tiny import VOCAB, tiny_config, write_tiny
from tests.support.running_engine import RunningEngine
from tests.support.scripted_drafter import ScriptedDrafter, good, welcome_for
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.backends import decoder_of
from verifier_svc.model.loading.loader import TargetError
from verifier_svc.model.loading.supported_models import why_not
from verifier_svc.model.target import Target, load_target

# Prompts that run side by side, one of them longer than a step, and tokens that follow each.
_PROMPTS, _OUTPUT = (1, 5, 23, 70), 24
# fp32: a row may be off by so much of its norm, and a token by so much of a logit.
_NEAR, _TIE = 2e-4, 1e-3


class Outcome(NamedTuple):
    """What became of a family, and the sentence that says why it is refused or wrong."""

    family: str
    kind: Literal["exact", "refused", "wrong", "failed"]
    sentence: str = ""


class _Rows(NamedTuple):
    slot: int
    position: int
    tokens: tuple[int, ...]
    prompt: bool


def outcome(family: str, **changes: Any) -> Outcome:
    """Try a family, `changes` made to its tiny configuration."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with torch.random.fork_rng():
                config = tiny_config(family, **changes)
                config.save_pretrained(folder)
                target = _refused_or_loaded(config, folder)
        except (TargetError, StartError) as error:
            return Outcome(family, "refused", str(error).replace(str(folder), "it"))
        except Exception as error:
            return Outcome(family, "failed", _first_line(error))
        try:
            wrong = next(_differences(target, folder), None)
        except Exception as error:
            return Outcome(family, "failed", _first_line(error))
    return Outcome(family, "wrong", wrong) if wrong else Outcome(family, "exact")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Target:
    """The target in a folder, as a verifier loads it."""
    return load_target(
        ModelSource.parse(str(folder)),
        dtype=dtype,
        device=torch.device("cpu"),
        trust_remote_code=False,
    )


def _refused_or_loaded(config: Any, folder: Path) -> Target:
    """Where the configuration alone is refused there are no weights to be made."""
    if why_not(config) is None:
        write_tiny(config, folder)
    return load(folder)


@torch.inference_mode()
def _differences(target: Target, folder: Path) -> Iterator[str]:
    """What differs from transformers, in sentences."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [_prompt(length) for length in _PROMPTS]
    texts = [_generated(model, prompt) for prompt in prompts]
    for length in ("0", "3"):
        port = ScriptedDrafter(welcome_for(target), good(texts, wrong=0.2))
        flags = ("--draft-length", length, "--token-budget", "48", "--max-sequences", "8")
        with RunningEngine(folder, port, *flags, target=target) as engine:
            options: dict[str, Any] = {"max_tokens": _OUTPUT, "ignore_eos": True}
            results = engine.finish(*[engine.submit(prompt, **options) for prompt in prompts])
        for result, text in zip(results, texts, strict=True):
            if (at := _first_difference(result.text, text)) is None:
                continue
            logits = model(torch.tensor([text[:at]]), use_cache=False).logits[0, -1]
            if float(logits[text[at]] - logits[result.text[at]]) > _TIE:
                yield f"token {at} is {result.text[at]} in place of {text[at]}"
        if length != "0" and not sum(r.finished.usage.accepted_draft_tokens for r in results):
            yield "no draft was accepted"
    far = max(_far(target, model, text) for text in texts)
    if not far <= _NEAR:
        yield f"states differ by {far:.1e} of their norm"


def _prompt(length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist())


def _generated(model: Any, prompt: Sequence[int]) -> list[int]:
    """Prompt and what transformers' own generate adds to it."""
    text: list[int] = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=_OUTPUT,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0].tolist()
    return text


def _first_difference(got: Sequence[int], wanted: Sequence[int]) -> int | None:
    pairs = enumerate(zip(got, wanted, strict=True))
    return next((index for index, (one, other) in pairs if one != other), None)


def _far(target: Target, model: Any, text: Sequence[int]) -> float:
    """How far final states of a text in pieces are off, as a share of a row's norm at most."""
    cache: KVCache = target.reserve(8, 0)
    pieces, start = [], 0
    for count in (1, 7, 2, 16, len(text)):
        rows = _Rows(16, start, tuple(text[start : start + count]), prompt=count > 2)
        if rows.tokens:
            pieces.append(target.states([rows], cache, ())[0].clone())
        start += count
    got = torch.cat(pieces)
    wanted = decoder_of(model)(torch.tensor([text]), use_cache=False).last_hidden_state[0]
    return float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
