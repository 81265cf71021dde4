"""What a checkpoint's weights say where its config was copied from the target, or is silent.

Trainers that start from the target's config leave its number of layers, its kind and its tied head
in the drafter's. What such a key is about has tensors of its own, so that these decide.
"""

import re

import torch
from torch import Tensor

from drafter_svc.formats.declared import DeclaredConfig
from drafter_svc.model.config import CheckpointError, require

HEAD, EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"
_FURTHER_LAYER = re.compile(r"layers\.(\d+)\.")
# Parts that other drafters have, by a piece of their tensors' names.
_OTHER_PARTS = {
    ".kv_a_proj": "attention over latent keys (MLA)",
    ".experts.": "a mixture of experts",
    ".sinks": "attention sinks",
    "parallel_draft_heads.": "heads that draft several tokens at once",
}


def infer_config(tensors: dict[str, Tensor], facts: DeclaredConfig, *, strict: bool) -> None:
    """Let ``tensors``, under the names of ``EagleDrafter``, decide what ``facts`` leave to them.

    A ``strict`` format has a config of its own making, which the weights must follow. Raises
    ``CheckpointError`` for a drafter of another kind, and where neither says enough.
    """
    _require_eagle3(tensors, facts)
    if not strict:
        _count_layers(tensors, facts)
        normed = any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in tensors)
        facts.values["qk_norm"] = facts.values["qk_norm"] and normed
    facts.values["own_embeddings"] = EMBEDDINGS in tensors
    _find_head(tensors, facts)
    if facts.values["attention_bias"] and not facts.output_bias:
        for name in [n for n in tensors if n.endswith("self_attn.o_proj.weight")]:
            weight = tensors[name]
            bias = name.replace(".weight", ".bias")
            tensors.setdefault(bias, torch.zeros(len(weight), dtype=weight.dtype))


def _require_eagle3(tensors: dict[str, Tensor], facts: DeclaredConfig) -> None:
    for name in sorted(tensors):
        part = next((part for piece, part in _OTHER_PARTS.items() if piece in name), None)
        require(
            part is None,
            f"the weights have {name}, a tensor of {part}, which this drafter does not compute",
        )
    if "midlayer.eh_proj.weight" in tensors:
        return
    fc = tensors.get("fc.weight")
    wrapped = next((name for name in sorted(tensors) if name.endswith(".fc.weight")), "")
    require(
        fc is not None or not wrapped,
        f"tensors begin with {wrapped.removesuffix('fc.weight')}, which this reader does not know: "
        "take it away from their names",
    )
    require(
        fc is not None or "midlayer.hidden_norm.weight" in tensors,
        "this is no EAGLE drafter: the weights have no fc.weight, which reads the target's states, "
        "and no hidden_norm.weight",
    )
    eagle1 = (
        fc is not None
        and fc.ndim == 2
        and fc.shape[1] == 2 * facts.values["hidden_size"]
        and "midlayer.hidden_norm.weight" not in tensors
    )
    require(
        not eagle1,
        "the weights are an EAGLE-1 head (fc.weight reads an embedding and one state, and there is "
        "no hidden_norm), this drafter computes EAGLE-3",
    )


def _count_layers(tensors: dict[str, Tensor], facts: DeclaredConfig) -> None:
    said = facts.values["num_hidden_layers"]
    numbers = {int(layer[1]) for name in tensors if (layer := _FURTHER_LAYER.match(name))}
    found = 1 + max(numbers, default=0)
    if found >= said:
        return  # more of them are tensors that config.json does not explain
    require(
        facts.values["sliding_window"] is None,
        f"config.json names {said} layers with a window, the weights have {found}: set "
        "num_hidden_layers, and layer_types if they see one",
    )
    facts.values["num_hidden_layers"] = found
    facts.notes.append(
        f"config.json says num_hidden_layers {said}, as the target may have: the weights' {found} "
        "count"
    )


def _find_head(tensors: dict[str, Tensor], facts: DeclaredConfig) -> None:
    """Tie the head, or leave it to the target, where there is none.

    One that is there is the head, whatever ``tie_word_embeddings`` says: a tied one would not
    have been saved beside the embeddings, unless as their equal.
    """
    values = facts.values
    values["own_head"] = True
    if HEAD in tensors:
        return
    draft, vocab = values["draft_vocab_size"], values["vocab_size"]
    if draft != vocab:
        raise CheckpointError(
            f"the weights have no tensor {HEAD}, and no other head can stand for it, since draft "
            f"tokens are {draft} of {vocab}"
        )
    if facts.tied and EMBEDDINGS in tensors:
        # A tensor of its own: files hold no shared memory, and training moves the head alone.
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
        return
    values["own_head"] = False
