"""A family's model made small: its default configuration with small numbers, and random weights."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from verifier_svc.model.loading.supported_models import why_not

VOCAB = 97
_LAYERS = 4
# Parameters of a model that has been made small, at most.
_MOST = 20_000_000

# Numbers of configurations, by the names that families have for them.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "emb_dim",
         "dim_model", "input_embedding_size", "output_embedding_size", "attention_hidden_size",
         "embedding_dim", "lru_width", "ple_embed_dim"), 64,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "decoder_layers", "encoder_layers", "n_layer", "n_layers",
         "num_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks"), _LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "decoder_attention_heads", "encoder_attention_heads", "n_head",
         "n_heads", "num_heads", "num_decoder_attention_heads", "num_encoder_attention_heads",
         "attention_heads", "swa_num_attention_heads", "n_mamba_heads"), 4,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads", "num_query_groups"), 2
    ),
    **dict.fromkeys(
        ("head_dim", "kv_channels", "swa_head_dim", "dim_head", "d_head", "attention_head_dim",
         "global_head_dim", "attention_head_size"), 16,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "dff",
         "n_inner", "d_inner", "ffn_hidden_size", "intermediate_size_mlp", "feed_forward_size",
         "dense_intermediate_size"), 96,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "shared_intermediate_size", "shared_experts_intermediate_size",
         "moe_shared_expert_intermediate_size", "router_hidden_size",
         "hidden_size_per_layer_input"), 32,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions",
         "model_max_length", "max_sequence_length"), 256,
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(
        ("sliding_window", "local_attention", "attention_window_size", "window_size",
         "sliding_window_size", "max_window_layers"), 24,
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    "first_k_dense_replace": 1,
    "rotary_dim": 8,
    "attention_chunk_size": 300,
    "original_max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_shared_experts": 1,
    "is_decoder": True,
}  # fmt: skip

_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# What a family needs besides to be made at all, or to have layers of all its kinds.
_NEEDED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {**_PLAIN, "mrope_section": [3, 3, 2]}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text", "hidden_size_per_layer_input": 0,
            "enable_moe_block": False, "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], _LAYERS // 2]]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (_LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (_LAYERS // 2)},
    "mamba2": {"num_heads": 8},
    # As published: a window that hides nothing, and is not passed to attention.
    "phimoe": {"sliding_window": 256},
}  # fmt: skip


def tiny_config(family: str, **changes: Any) -> Any:
    """The configuration of a family, small; `changes` come last."""
    kind, needed = CONFIG_MAPPING[family], _NEEDED.get(family, {})
    # Some cannot be made without the configuration of another model.
    default = kind(**needed) if "text_config" in needed else kind()
    if why_not(default) is not None and not changes:
        return default  # refused as it is
    text = default.get_text_config()
    known = text.to_dict()
    small = {name: value for name, value in _SMALL.items() if name in known}
    small |= {n: None for n in small if n.endswith("_token_id") and known[n] is None}
    if isinstance(known.get("num_experts_per_tok"), int):
        small["num_experts_per_tok"] = min(2, known["num_experts_per_tok"])
    types = getattr(text, "layer_types", None)
    name = kind.attribute_map.get("layer_types", "layer_types")
    if types and not isinstance(getattr(kind, name, None), property):
        # Each kind of layer comes up, however rare it is in the real model.
        small["layer_types"] = list(islice(cycle(dict.fromkeys(types)), _LAYERS))
    return kind(**{**small, **needed, **changes})


def write_tiny(config: Any, folder: Path, seed: int = 0) -> Path:
    """Save a model of random weights that are large enough for texts that differ.

    Raises:
        ValueError: the configuration has not been made small.
    """
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if count > _MOST:
        raise ValueError(f"the tiny model has {count} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() < 2:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                else:
                    wide = 0.5 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
                    parameter.normal_(std=wide)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder
