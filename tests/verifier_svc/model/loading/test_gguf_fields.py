"""A GGUF file's RoPE is scaled as the file says, and what is not read is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from specserve.model_source import ModelSource
from tests.families.walk import load
from tests.support.tiny_gguf import write_tiny_gguf
from verifier_svc.model.loading.gguf_unpack import unpacked_target
from verifier_svc.model.loading.loader import TargetError, read_config, read_model

WIDTH, LENGTH = 8, 128
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0,
    "beta_slow": 2.0,
}  # fmt: skip
SCALED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "yarn": (
        {
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32, "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
        YARN,
    ),
    "none": ({"rope.scaling.type": "none"}, {"rope_type": "default"}),
}  # fmt: skip
TOKENS = torch.tensor([[5, 3, 12, 7, 9, 4, 11, 6, 8, 10] * 9])


def llama(rope: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=13, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )  # fmt: skip


def model_of(path: Path) -> Any:
    source = ModelSource.parse(str(path))
    config = read_config(source, trust_remote_code=False)
    return read_model(source, config=config, dtype=torch.float32)


def check_equals(path: Path, rope: dict[str, Any]) -> None:
    """The file gives what transformers' own scaling over its weights gives, unpacked too."""
    model, wanted = model_of(path), LlamaForCausalLM(llama(rope)).eval()
    wanted.load_state_dict(model.state_dict())
    with torch.inference_mode():
        logits = wanted(TOKENS).logits
        torch.testing.assert_close(model(TOKENS).logits, logits, rtol=1e-4, atol=1e-4)
    kept = unpacked_target(ModelSource.parse(str(path)), torch.float32, path.parent / "cache")
    again = AutoModelForCausalLM.from_pretrained(kept.path, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(again(TOKENS).logits, logits, rtol=1e-4, atol=1e-4)
    load(Path(kept.path))  # and proves itself


@pytest.mark.parametrize("name", SCALED)
def test_scaling_is_read_from_its_fields(name: str, tmp_path: Path) -> None:
    fields, rope = SCALED[name]
    check_equals(write_tiny_gguf(tmp_path / "tiny.gguf", fields=fields), rope)


def test_the_factors_of_llama_3_are_read_from_their_tensor(tmp_path: Path) -> None:
    plain = LlamaForCausalLM(llama({"rope_type": "default"})).model.rotary_emb.inv_freq
    turned = LlamaForCausalLM(llama(LLAMA3)).model.rotary_emb.inv_freq
    factors = (plain / turned).tolist()
    assert max(factors) == pytest.approx(8.0)
    assert min(factors) == pytest.approx(1.0)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": factors})
    check_equals(path, LLAMA3)
    # Without the tensor the model is another one.
    other = model_of(write_tiny_gguf(tmp_path / "plain.gguf"))
    with torch.inference_mode():
        far = (other(TOKENS).logits - model_of(path)(TOKENS).logits).abs().max()
    assert far > 0.1


def test_factors_by_length_serve_the_original_length(tmp_path: Path) -> None:
    short, long = [1.0, 1.5, 2.0, 2.5], [4.0, 6.0, 8.0, 10.0]
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        fields={"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.25},
        tensors={"rope_factors_short.weight": short, "rope_factors_long.weight": long},
    )
    rope = {
        "rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": 1.0,
        "attention_factor": 1.25, "original_max_position_embeddings": 32,
    }  # fmt: skip
    check_equals(path, rope)
    target = load(Path(unpacked_target(ModelSource.parse(str(path)), torch.float32, tmp_path).path))
    assert target.max_position == 32


@pytest.mark.parametrize(
    ("fields", "tensors", "sentence"),
    [
        ({"rope.scaling.type": "su"}, {}, r"rope.scaling.type su of the GGUF file is not read"),
        ({"rope.scaling.alpha": 2.0}, {}, r"the GGUF field rope.scaling.alpha is not read"),
        ({"attention.clamp_kqv": 8.0}, {}, r"the GGUF field attention.clamp_kqv \(8.0\)"),
        ({"expert_count": 8}, {}, r"the GGUF field expert_count \(8\)"),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            {"rope_freqs.weight": [1.0, 1.0, 2.0, 8.0]},
            r"rope_freqs.weight and rope.scaling.type linear at once",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    fields: dict[str, Any], tensors: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", fields=fields, tensors=tensors)
    with pytest.raises(TargetError, match=f"^target: tiny cannot be loaded: .*{sentence}"):
        unpacked_target(ModelSource.parse(str(path)), torch.float32, tmp_path / "cache")


def test_fields_that_say_the_same_are_no_hindrance(tmp_path: Path) -> None:
    fields = {
        "attention.key_length": WIDTH, "attention.value_length": WIDTH,
        "rope.dimension_count": WIDTH, "expert_count": 0, "rope.scaling.finetuned": 0,
    }  # fmt: skip
    check_equals(
        write_tiny_gguf(
            tmp_path / "tiny.gguf", fields=fields, tensors={"rope_freqs.weight": [1.0] * 4}
        ),
        {"rope_type": "default"},
    )
