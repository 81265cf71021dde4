"""The nested ``config.json`` of the speculators library.

Layers lie in ``transformer_layer_config``, which leaves out what equals transformers' defaults,
toggles at the top, and the target in ``speculators_config``.
"""

import json
from collections.abc import Mapping
from typing import Any

from drafter_svc.formats.declared import DeclaredConfig
from drafter_svc.formats.json_section import Section
from drafter_svc.formats.llama_config import KNOWN, read_layers, write_layers
from drafter_svc.formats.refused_keys import IGNORED
from drafter_svc.formats.specforge_config import AUX_LAYERS, read_aux_list, read_own, write_own
from drafter_svc.model.config import CheckpointError, DrafterConfig, require

_TOGGLES = ("fc_norm", "norm_output", "norm_before_fc")
_LAYERS = "transformer_layer_config"


def is_nested(values: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of this kind."""
    return _LAYERS in values or "speculators_model_type" in values


def read_nested(values: Mapping[str, Any]) -> DeclaredConfig:
    """Take a nested config. Raises ``CheckpointError`` for keys unknown, missing or at odds."""
    top = Section(values, "config.json")
    kind = top.take("speculators_model_type", str)
    require(kind == "eagle3", f"config.json: speculators_model_type is {kind!r}, not 'eagle3'")
    own = top.optional("holdcourse", dict)
    inner = top.take(_LAYERS, dict)
    layers = read_layers(Section(_with_defaults(inner), _LAYERS))
    # This library's layers always have an output layer of their own.
    facts = DeclaredConfig(
        layers,
        aux_layers=read_aux_list(top),
        aux_convention="input",
        norm_before_residual=top.optional("norm_before_residual", bool),
        output_bias=layers.pop("output_bias"),
    )
    for name in _TOGGLES:
        facts.values[name] = top.default(name, bool, False)
    facts.values["target_hidden_size"] = top.default(
        "target_hidden_size", int, layers["hidden_size"]
    )
    facts.values["draft_vocab_size"] = top.take("draft_vocab_size", int)
    facts.values["mtp_head"] = False
    _check_proposal(top.default("speculators_config", dict, {}))
    top.fixed({"tie_word_embeddings": False})
    top.drop((*IGNORED, "model_type"))  # of the layers, which have it themselves
    top.finish()
    if own is not None:
        read_own(facts, own)
    return facts


def write_nested(config: DrafterConfig, verifier: str) -> str:
    """The text of a ``config.json`` that speculators, vLLM and `read_nested` take.

    ``verifier`` is the target's Hugging Face id or folder, from which those load it.
    """
    require(
        config.hidden_size == config.target_hidden_size,
        "speculators cannot hold a drafter whose width differs from its target's",
    )
    require(not config.mtp_head, "speculators' EAGLE-3 cannot hold an MTP head")
    require(config.own_head, "speculators cannot hold a drafter that borrows its target's head")
    top: dict[str, Any] = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": None,
        "norm_before_residual": config.norm_before_residual,
        AUX_LAYERS: list(config.aux_layers),
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        _LAYERS: write_layers(config),
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "verifier": {"name_or_path": verifier, "architectures": []},
        },
        "holdcourse": write_own(config),
    }
    for name in _TOGGLES:
        top[name] = getattr(config, name)
    return json.dumps(top, indent=2) + "\n"


def _with_defaults(inner: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of the section, of the keys that `read_layers` knows."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    unknown = ", ".join(sorted(inner.keys() - KNOWN - IGNORED))
    require(not unknown, f"{_LAYERS} has keys that this drafter does not know: {unknown}")
    # speculators takes Qwen3's where none is named.
    model_type = inner.get("model_type", "qwen3")
    require(
        model_type in ("llama", "qwen3"),
        f"{_LAYERS}: model_type is {model_type!r}, speculators has layers of llama and qwen3 only",
    )
    given = {key: value for key, value in inner.items() if key != "model_type"}
    try:
        filled = AutoConfig.for_model(model_type, **given).to_dict()
    except (StrictDataclassError, TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{_LAYERS} is not a config of {model_type}: {reason}") from None
    known = {key: value for key, value in filled.items() if key in KNOWN - {"tie_word_embeddings"}}
    # Both spellings may be written; transformers has merged them by now.
    return {k: v for k, v in known.items() if k not in ("rope_theta", "rope_scaling")}


def _check_proposal(values: Mapping[str, Any]) -> None:
    section = Section(values, "speculators_config")
    algorithm = section.optional("algorithm", str)
    require(
        algorithm in (None, "eagle3"), f"speculators_config: algorithm is {algorithm!r}, not eagle3"
    )
