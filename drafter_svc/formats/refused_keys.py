"""Keys of config files beside those that say shapes: what changes nothing, and what cannot be.

Weights speak for themselves: a part that has tensors cannot be missed, since each of them must have
a place in ``EagleDrafter``. Keys that describe such a part are without effect where it is not.
"""

#: Keys that change nothing in the forward pass, by why they do not.
IGNORED_BECAUSE: dict[str, frozenset[str]] = {
    "bookkeeping of transformers and of speculators": frozenset(
        {
            "_name_or_path", "architectures", "auto_map", "chunk_size_feed_forward", "dtype",
            "has_no_defaults_at_init", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
            "output_attentions", "output_hidden_states", "problem_type", "return_dict",
            "speculators_version", "torch_dtype", "transformers_version", "use_cache",
        }
    ),
    "matters in training only": frozenset(
        {
            "attention_dropout", "embd_pdrop", "embed_requires_grad", "hidden_dropout",
            "initializer_range", "output_router_logits", "pretraining_tp", "resid_pdrop",
            "router_aux_loss_coef", "router_jitter_noise",
        }
    ),
    "names tokens": frozenset(
        {
            "audio_token_id", "bos_token_id", "eod_token_id", "eos_token_id", "im_end_id",
            "im_newline_id", "im_start_id", "image_end_token_id", "image_newline_token_id",
            "image_start_token_id", "image_token_id", "mask_init_id", "pad_id", "pad_token_id",
            "sep_token_id", "text_end_id", "text_start_id", "video_token_id",
            "vision_end_token_id", "vision_start_token_id", "vision_token_id",
        }
    ),
    "is about the target": frozenset(
        {"inference_type", "modal_type", "org_vocab_size", "target_model_type"}
    ),
    "tells images from text by position, of which text has one": frozenset({"use_mrope"}),
    "says where a window begins, which layer_types or use_sliding_window say too": frozenset(
        {"max_window_layers"}
    ),
    "describes experts, which the weights would show": frozenset(
        {
            "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob",
            "num_experts", "num_experts_per_tok", "num_local_experts",
            "shared_expert_intermediate_size",
        }
    ),
    "describes norms, which the weights would show": frozenset({"use_qk_norm"}),
    "describes a classifier, or keys shared by layers where use_cla is on": frozenset(
        {"cla_share_factor", "class_num", "dense_list", "pool_type"}
    ),
}  # fmt: skip
IGNORED: frozenset[str] = frozenset().union(*IGNORED_BECAUSE.values())
#: The same in ``eagle_config``.
EAGLE_IGNORED_BECAUSE: dict[str, frozenset[str]] = {
    "sizes heads that only a parallel_draft_step above 1 has": frozenset(
        {"parallel_draft_heads_num_layers"}
    )
}
EAGLE_IGNORED: frozenset[str] = frozenset().union(*EAGLE_IGNORED_BECAUSE.values())

#: Keys of what this drafter does not compute, by what it is.
REFUSED_BECAUSE: dict[str, frozenset[str]] = {
    "weights are quantized": frozenset(
        {"compression_config", "quantization", "quantization_config"}
    ),
    "attention reads latent keys (MLA)": frozenset(
        {"kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}
    ),
    "scores or logits are capped or scaled": frozenset(
        {
            "attention_multiplier", "attn_logit_softcapping", "embedding_multiplier",
            "final_logit_softcapping", "logits_scaling", "query_pre_attn_scalar",
            "residual_multiplier",
        }
    ),
    "it drafts several tokens at once": frozenset(
        {"block_size", "dflash_config", "mask_token_id", "num_nextn_predict_layers"}
    ),
    "positions are not rotary": frozenset({"alibi", "no_rope_layers"}),
}  # fmt: skip

#: Values that these keys have where they change nothing.
FIXED: dict[str, object] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "logit_scale": 1.0,
    "norm_type": "rms",
    "use_cla": False,
    "use_rotary_pos_emb": True,
    "add_classification_head": False,
}
#: The same of flat configs as a whole, and in their ``eagle_config``.
FLAT_FIXED: dict[str, object] = {"bias": False, "parallel_drafting": False}
EAGLE_FIXED: dict[str, object] = {
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
}


def refusal(key: str) -> str | None:
    """What a key says that this drafter does not compute; None where nobody knows the key."""
    return next((why for why, keys in REFUSED_BECAUSE.items() if key in keys), None)
