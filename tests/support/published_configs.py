"""What published draft configurations have in common and where they differ, at a tiny size.

53 files that SafeAILab, SpecForge and AngelSlim publish for training, by the traits that a reader
has to get right. Sizes are all the same here, so that one set of weights serves them.
"""

from dataclasses import dataclass, field
from typing import Any

#: What every one of them says in its own numbers.
SHAPE: dict[str, Any] = {
    "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.02, "intermediate_size": 24,
    "max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": 1,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "vocab_size": 64, "draft_vocab_size": 40, "bos_token_id": 1, "eos_token_id": [2, 3],
    "model_type": "llama",
}  # fmt: skip

_SPECFORGE = {"architectures": ["LlamaForCausalLMEagle3"], "pad_token_id": 0}
_ANGELSLIM = {
    "architectures": ["Eagle3LlamaForCausalLM"], "attention_dropout": 0.0, "rope_theta": 1e6,
    "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 28, "target_model_type": "qwen3",
}  # fmt: skip
_QWEN = {"head_dim": 6, "rope_scaling": None, "rope_theta": 1e6, "attention_bias": False}
_UNUSED_WINDOW = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 24}
_VISION = {
    "modal_type": "VLM", "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7,
    "vision_end_token_id": 8, "rope_theta": 5e6,
}  # fmt: skip
_MROPE = {"type": "mrope", "mrope_section": [1, 1, 1]}
_INTERLEAVED = {
    "type": "default", "rope_type": "default", "mrope_interleaved": True, "mrope_section": [1, 1, 1]
}  # fmt: skip
_HUNYUAN = {
    "add_classification_head": False, "attention_head_dim": 6, "cla_share_factor": 2,
    "class_num": 0, "dense_list": [16, 0], "eod_token_id": 5, "head_dim": 6, "im_end_id": 5,
    "im_newline_id": 11, "im_start_id": 4, "mask_init_id": 12, "mlp_bias": False,
    "norm_type": "rms", "org_vocab_size": 64, "pad_id": 2, "pool_type": "last",
    "pretraining_tp": 1, "rope_theta": 1e4, "sep_token_id": 7, "text_end_id": 7,
    "text_start_id": 6, "use_cla": False, "use_qk_norm": True, "use_rotary_pos_emb": True,
}  # fmt: skip
_EXPERTS = {"decoder_sparse_step": 1, "output_router_logits": False, "router_aux_loss_coef": 0.001}
_LLAMA3 = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64, "rope_type": "llama3",
}  # fmt: skip
_DEEPSEEK_YARN = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 32, "rope_type": "yarn",
}  # fmt: skip
_OUTPUTS = {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [1, 2, 4]}


@dataclass(frozen=True)
class Published:
    """Files of one shape: what they say, and what it means or why it is refused.

    ``means`` are fields of ``DrafterConfig`` that differ from a plain drafter's of base 10,000
    whose heads are 4 wide.
    """

    names: str
    says: dict[str, Any]
    means: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    embeddings: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return SHAPE | self.says


def specforge(names: str, says: dict[str, Any], refused: str | None = None, **means: Any) -> Any:
    return Published(names, _SPECFORGE | says, means, refused)


def angelslim(names: str, says: dict[str, Any], refused: str | None = None, **means: Any) -> Any:
    means = {"rope_theta": 1e6, "own_embeddings": True} | means
    return Published(names, _ANGELSLIM | says, means, refused, embeddings=True)


WIDE: dict[str, Any] = {"head_dim": 6}
PUBLISHED: list[Published] = [
    Published("SafeAILab/traineagle3", {"architectures": ["LlamaForCausalLM"]}),
    specforge("ling-flash-2.0 llama4-scout-17B-16E", {}),
    specforge("deepseek-v3-671b", {"eagle_config": _OUTPUTS}),
    specforge(
        "deepseek-v2-lite", _QWEN | {"rope_theta": 10000, "rope_scaling": _DEEPSEEK_YARN},
        rope_scaling=_DEEPSEEK_YARN, **WIDE,
    ),
    specforge(
        "gpt-oss-20B gpt-oss-120B",
        WIDE | {"rope_theta": 150000, "eagle_config": {k: _OUTPUTS[k] for k in list(_OUTPUTS)[1:]}},
        rope_theta=1.5e5, **WIDE,
    ),
    specforge("llama3-8B", {"rope_theta": 5e5}, rope_theta=5e5),
    specforge(
        "llama3-70B", WIDE | {"rope_theta": 5e5, "rope_scaling": _LLAMA3},
        rope_theta=5e5, rope_scaling=_LLAMA3, **WIDE,
    ),
    specforge(
        "longcat-flash", _QWEN | {"rope_theta": 1e7, "vocab_size": 40},
        rope_theta=1e7, vocab_size=40, **WIDE,
    ),
    specforge(
        "qwen3-4b qwen3-8b qwen3-32b qwen3-30B-A3B qwen3-coder-30B-A3B-instruct qwen3-coder-next",
        _QWEN | {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 36},
        rope_theta=1e6, **WIDE,
    ),
    specforge(
        "qwen3-235B-A22B qwen3-coder-480B-A35B-instruct", _QWEN | {"eagle_config": _OUTPUTS},
        rope_theta=1e6, **WIDE,
    ),
    specforge(
        "qwen3-30B-A3B-eagle3.1", _QWEN | {"fc_norm": True, "norm_output": True},
        rope_theta=1e6, fc_norm=True, norm_output=True, **WIDE,
    ),
    specforge(
        "qwen3-next-80b-a3b qwen3.5-35b-a3b",
        _QWEN | {"decoder_sparse_step": 1, "rope_theta": 10000000, "use_sliding_window": False},
        rope_theta=1e7, **WIDE,
    ),
    specforge(
        "qwen2.5-0.5b qwen2.5-7b", _UNUSED_WINDOW | {"rope_theta": 1e6}, rope_theta=1e6
    ),
    specforge(
        "qwq-32B",
        _UNUSED_WINDOW | {
            "architectures": ["Qwen2ForCausalLMEagle3"], "model_type": "qwen2", "rope_theta": 1e6
        },
        rope_theta=1e6,
    ),
    specforge(
        "qwen2-5-vl-7b qwen2.5-vl-32b",
        _QWEN | _UNUSED_WINDOW | {"target_model_type": "qwen2_5_vl", "rope_scaling": _MROPE},
        rope_theta=1e6, **WIDE,
    ),
    specforge(
        "gemma3-1b",
        _QWEN | {
            "target_model_type": "gemma3_text", "sliding_window": 32, "use_sliding_window": False
        },
        rope_theta=1e6, **WIDE,
    ),
    specforge(
        "phi4", {"model_type": "phi3", "rope_theta": 250000.0, "attention_bias": False},
        rope_theta=2.5e5,
    ),
    specforge(
        "qwen3-8b-peagle", _QWEN | {"architectures": ["PEagleDraftModel"]}, "several tokens at once"
    ),
    angelslim(
        "qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b",
        _UNUSED_WINDOW | {"target_model_type": "qwen2", "use_mrope": False},
    ),
    angelslim("qwen3-0.6b qwen3-1.7b qwen3-4b qwen3-8b", _QWEN, **WIDE),
    angelslim("qwen3-14b qwen3-32b", _QWEN | {"tie_word_embeddings": False}, **WIDE),
    angelslim("qwen3-30b-a3b", _QWEN | _EXPERTS | {"tie_word_embeddings": False}, **WIDE),
    angelslim(
        "qwen2-audio-7b",
        _QWEN | {"modal_type": "Audio", "target_model_type": "qwen2_audio", "rope_theta": 10000},
        rope_theta=1e4, **WIDE,
    ),
    angelslim(
        "qwen2.5-vl-3b-mrope qwen2.5-vl-7b-mrope",
        _VISION | _UNUSED_WINDOW | {"vision_token_id": 9, "rope_scaling": _MROPE},
        rope_theta=5e6,
    ),
    angelslim(
        "qwen3-vl-2b-mrope qwen3-vl-4b-mrope qwen3-vl-8b-mrope qwen3-vl-30b-a3b-mrope",
        _QWEN | _VISION | {"rope_scaling": _INTERLEAVED}, rope_theta=5e6, **WIDE,
    ),
    angelslim("qwen3-vl-4b", _QWEN | _VISION, rope_theta=5e6, **WIDE),
    angelslim("hunyuan-4b hunyuan-7b", _HUNYUAN, rope_theta=1e4, **WIDE),
    angelslim(
        "hunyuan-1.8b",
        _HUNYUAN | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
        "rope_type is 'dynamic'",
    ),
    angelslim(
        "hunyuan_ocr",
        WIDE | {
            "target_model_type": "hunyuan_vl", "modal_type": "VLM", "rope_theta": 1e4,
            "eod_token_id": 5, "image_start_token_id": 6, "image_end_token_id": 7,
            "image_token_id": 8, "image_newline_token_id": 9,
        },
        rope_theta=1e4, **WIDE,
    ),
    angelslim(
        "cosyvoice3-llm",
        _UNUSED_WINDOW | {
            "architectures": ["CosyVoice3Eagle3LlamaForCausalLM"], "num_hidden_layers": 24,
            "vocab_size": 40,
        },
        vocab_size=40,
    ),
]  # fmt: skip
