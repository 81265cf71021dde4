"""Runs inside an environment that has the speculators package; imports nothing of ours.

`create OUT` saves random drafters of every toggle combination with what the package computes for
random features; `forward OUT` loads the drafters in the folders of OUT and saves the same for them.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

STEPS, LENGTH = 4, 13
WIDTH, VOCAB, DRAFT = 16, 48, 29
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


def combinations() -> Iterator[dict[str, Any]]:
    """Toggles by name."""
    names = ("model", "norm", "norm_output", "norm_before_residual", "layers", "attention_bias")
    norms, both = (None, "fc_norm", "norm_before_fc"), (False, True)
    for values in itertools.product(("llama", "qwen3"), norms, both, both, (1, 2), both):
        yield dict(zip(names, values, strict=True))
    plain = {
        "model": "llama", "norm": "fc_norm", "norm_output": True, "norm_before_residual": True,
        "layers": 1, "attention_bias": False,
    }  # fmt: skip
    for change in (
        {"rope": LLAMA3}, {"rope": YARN}, {"rope": LINEAR}, {"draft": VOCAB}, {"aux": [0, 3]},
        {"aux": [1, 4, 6, 9]}, {"window": 5, "model": "qwen3"}, {"heads": 4}, {"defaults": True},
    ):  # fmt: skip
        yield plain | change


def build(toggles: dict[str, Any]) -> Any:
    layer = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": toggles["layers"],
        "num_attention_heads": 4,
        "num_key_value_heads": toggles.get("heads", 2),
        "head_dim": 6,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "attention_bias": toggles["attention_bias"],
        "tie_word_embeddings": False,
    }
    if "rope" in toggles:
        layer["rope_parameters"] = toggles["rope"]
    if toggles.get("defaults"):  # what equals transformers' defaults is not written
        del layer["rms_norm_eps"], layer["max_position_embeddings"], layer["attention_bias"]
    if "window" in toggles:
        layer |= {
            "sliding_window": toggles["window"],
            "use_sliding_window": True,
            "max_window_layers": 0,
        }
    kind = {"llama": LlamaConfig, "qwen3": Qwen3Config}[toggles["model"]]
    transformer = kind(**layer)
    transformer._attn_implementation = "eager"
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=transformer,
        draft_vocab_size=toggles.get("draft", DRAFT),
        norm_before_residual=toggles["norm_before_residual"],
        norm_output=toggles["norm_output"],
        fc_norm=toggles["norm"] == "fc_norm",
        norm_before_fc=toggles["norm"] == "norm_before_fc",
        eagle_aux_hidden_state_layer_ids=toggles.get("aux", [2, 4, 6]),
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"]),
        ),
    )
    model = Eagle3DraftModel(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale, offset = (0.3, 0.0) if parameter.ndim == 2 else (0.4, 1.0)
            parameter.copy_(torch.randn(parameter.shape) * scale + offset)
    if model.use_draft_vocab:
        ids = torch.randperm(VOCAB)[:DRAFT].sort().values
        model.d2t.copy_(ids - torch.arange(DRAFT))
        model.t2d[ids] = True
    return model


@torch.no_grad()
def run(model: Any) -> dict[str, torch.Tensor]:
    """Inputs, and fp32 logits [steps, length, draft] of chains from every position."""
    captured = len(model.config.eagle_aux_hidden_state_layer_ids)
    features = torch.randn(1, LENGTH, captured * model.hidden_size)
    tokens = torch.randint(0, model.verifier_vocab_size, (1, LENGTH))
    logits: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda *call: logits.append(call[-1][0].clone()))
    model(features, tokens, torch.zeros(1, LENGTH, dtype=torch.long), ttt_steps=STEPS)
    handle.remove()
    return {"features": features[0], "tokens": tokens[0], "logits": torch.stack(logits)}


def main(command: str, *arguments: str) -> None:
    torch.manual_seed(0)
    if command == "forward":
        for folder in Path(arguments[0]).iterdir():
            config = Eagle3SpeculatorConfig.from_pretrained(folder)
            config.transformer_layer_config._attn_implementation = "eager"
            model = Eagle3DraftModel.from_pretrained(folder, config=config).float().eval()
            save_file(run(model), folder / "expected.st")
        return
    out = Path(arguments[0])
    for number, toggles in enumerate(combinations()):
        folder = out / f"{number:03}"
        model = build(toggles)
        model.save_pretrained(folder)
        save_file(run(model), folder / "expected.st")
        (folder / "toggles.json").write_text(json.dumps(toggles))


if __name__ == "__main__":
    main(*sys.argv[1:])
