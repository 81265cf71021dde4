"""A GGUF file that is damaged, or says too little, is refused in one sentence."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specserve.model_source import ModelSource
from tests.support.tiny_gguf import write_tiny_gguf
from verifier_svc.model.loading.gguf_unpack import unpacked_target
from verifier_svc.model.loading.loader import TargetError

QUERY = b"blk.0.attn_q.weight"
METADATA = "damaged or cut short: its metadata cannot be read."
TENSORS = "damaged or cut short: its tensors cannot be read."
GAP = "damaged or cut short: blk.0.attn_q.weight does not end where blk.0.attn_k.weight begins."


def put(data: bytes, at: int, form: str, *values: int | float) -> bytes:
    new = struct.pack(f"<{form}", *values)
    return data[:at] + new + data[at + len(new) :]


def tensor(at: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    """Changes so many bytes behind the first tensor's name: dimensions, type, offset."""
    return lambda data: put(data, data.index(QUERY) + len(QUERY) + at, form, *values)


def field(name: str, form: str, *values: int | float) -> Callable[[bytes], bytes]:
    """Changes the type of a field of 32 bits, and its value."""
    key = name.encode()
    return lambda data: put(data, data.index(key) + len(key), form, *values)


def without(name: str) -> Callable[[bytes], bytes]:
    key = struct.pack("<Q", len(name)) + name.encode()
    return lambda data: data.replace(key, key[:-1] + b"~", 1)


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "the GGUF file is empty."),
    "magic": (lambda data: b"GGML" + data[4:], "it is not a GGUF file."),
    "header": (lambda data: data[:24], METADATA),
    "metadata": (lambda data: data[:600], METADATA),
    "half": (lambda data: data[: len(data) // 2], TENSORS),
    "a byte": (lambda data: data[:-1], TENSORS),
    "version": (lambda data: put(data, 4, "I", 9), "handles v2 and v3."),
    "tensors": (lambda data: put(data, 8, "Q", 1 << 60), METADATA),
    "fields": (lambda data: put(data, 16, "Q", 1 << 60), METADATA),
    "list": (field("tokenizer.ggml.token_type", "IIQ", 9, 5, 1 << 50), METADATA),
    "text": (lambda data: data.replace(b"<|end|>", b"\xff|end|>", 1), "text that cannot be read."),
    "unknown type": (tensor(20, "I", 99), TENSORS),
    "half type": (tensor(20, "I", 1), GAP),
    "quantized type": (tensor(20, "I", 8), GAP),
    "offset": (tensor(24, "Q", 1 << 40), TENSORS),
    "shape": (tensor(4, "QQ", 32, 16), GAP),
    "name": (
        lambda data: data.replace(QUERY, b"blk.0.attn_x.weight"),
        "the weights have no model.layers.0.self_attn.q_proj.weight.",
    ),
    "no length": (without("llama.context_length"), "has no llama.context_length."),
    "no layers": (without("llama.block_count"), "has no llama.block_count."),
    "no epsilon": (
        without("llama.attention.layer_norm_rms_epsilon"),
        "has no llama.attention.layer_norm_rms_epsilon.",
    ),
    "no tokens": (without("tokenizer.ggml.tokens"), "has no tokenizer.ggml.tokens."),
    "a fraction": (
        field("llama.block_count", "If", 6, 2.5),
        "expected int, got float (value: 2.5)",
    ),
    "more layers": (
        field("llama.block_count", "II", 4, 3),
        "the weights have no model.layers.2.input_layernorm.weight and 8 more.",
    ),
    "no heads": (
        field("llama.attention.head_count_kv", "II", 4, 0),
        "num_attention_heads is 4, no multiple of num_key_value_heads (0).",
    ),
    "end": (
        field("tokenizer.ggml.eos_token_id", "II", 4, 13),
        "the GGUF field tokenizer.ggml.eos_token_id is 13, of 13 tokens.",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_one_sentence(damage: str, tmp_path: Path) -> None:
    change, sentence = DAMAGED[damage]
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(TargetError, match=re.escape(sentence)) as error:
        unpacked_target(ModelSource.parse(str(path)), torch.float32, tmp_path / "cache")
    assert "\n" not in str(error.value)
