"""A real target, loaded as a verifier does: its texts, and its drafter where we ship one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from drafter_svc.build import load_drafter
from drafter_svc.service.in_process import LocalDrafter
from drafter_svc.settings import DrafterSettings
from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.compared import compare
from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.options import PROGRAM
from loadtests.gpu_check.stream import Stream, Text
from specserve.model_source import ModelSource
from verifier_svc.build import build_target, find_target, tokenizer_files
from verifier_svc.model.target import Target
from verifier_svc.settings import VerifierSettings

_CHECKPOINT = Path(__file__).parents[3] / "drafter_svc/checkpoints/smollm2-135m-instruct"
_QUESTION = "Write a short story about a lighthouse keeper who repairs an old radio."
_LENGTH = 3
# Tokens a verification: even a small drafter's first guesses are right at times.
_YIELD = 1.2


def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    tokens = 2 * bench.shapes.text
    with tempfile.TemporaryDirectory() as cache:
        settings = _settings(bench, cache)
        source = find_target(settings)
        target = build_target(settings, source)
        prompt = _prompt(settings, source)
        said = f"{system.form(target)}, {target.dtype}"
        findings.holds("it is recorded", system.recorded(target), said)
        with torch.inference_mode():
            compare(target, prompt, bench.shapes.text).judge(findings, source.name)
        plain = _written(Stream(settings, target, None), prompt, tokens)
        findings.note("one stream without drafts", plain.tokens_per_second, "tokens/s")
        if (port := _drafter(bench, settings, target)) is None:
            return
        drafted = _written(Stream(settings, target, port), prompt, tokens)
    findings.note("one stream with drafts", drafted.tokens_per_second, "tokens/s")
    findings.at_least("tokens a verification", drafted.tokens_a_round, _YIELD)
    pairs = enumerate(zip(plain.tokens, drafted.tokens, strict=True))
    same = next((i for i, (one, other) in pairs if one != other), tokens)
    findings.note(f"of {tokens} tokens, those before the first that differs", same)


def _written(stream: Stream, prompt: tuple[int, ...], tokens: int) -> Text:
    with stream:
        stream.write(prompt, tokens // 4)  # which warms up
        return stream.write(prompt, tokens)


def _settings(bench: Bench, cache: str) -> VerifierSettings:
    given = {
        "target": bench.options.target,
        "cache": cache,
        "device": bench.device,
        "compile": "off",
        "draft-length": _LENGTH,
        "max-draft-tokens": _LENGTH,
        "max-model-len": 512,
        "max-sequences": 1,
        "kv-memory": "256MiB",
        "draft-deadline-ms": 10_000,
        "prefix-cache": "off",
    }
    return VerifierSettings.read(
        PROGRAM, [f"--{name}={value}" for name, value in given.items()], {}
    )


def _drafter(bench: Bench, settings: VerifierSettings, target: Target) -> LocalDrafter | None:
    """Our own for SmolLM2; None for another target."""
    made_for = json.loads((_CHECKPOINT / "config.json").read_text(encoding="utf-8"))["holdcourse"]
    if made_for["target_fingerprint"] != target.fingerprint:
        return None
    given = {
        "checkpoint": _CHECKPOINT,
        "target": settings.target,
        "cache": settings.cache,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": bench.device,
        "compile": "off",
        "max-draft-tokens": _LENGTH,
        "lookup": "off",
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    drafter = load_drafter(DrafterSettings.read(PROGRAM, flags, {}), "gpu-check")
    return LocalDrafter(drafter, target.shape)


def _prompt(settings: VerifierSettings, source: ModelSource) -> tuple[int, ...]:
    """A question as the target's own template puts it, or as it is."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_files(settings, source).items():
            Path(folder, name).write_bytes(content)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(_QUESTION))
    asked = [{"role": "user", "content": _QUESTION}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))
