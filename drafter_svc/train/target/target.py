"""The frozen target: its tokenizer, its embeddings and output layer, and its layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from drafter_svc.train.target.embeddings_only import load_ends
from drafter_svc.train.target.hidden_state_hooks import States, keep_states
from speckernels.fingerprint import target_fingerprint
from specserve.model_source import ModelSource


@dataclass(frozen=True, slots=True)
class Target:
    """A causal LM in bf16, its tokenizer and its fingerprint."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def head(self) -> Tensor:
        """Rows of the output layer, ``[vocab, H]``."""
        return self.model.get_output_embeddings().weight  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Tensor:
        return self.model.base_model.norm.weight  # type: ignore[no-any-return]

    @torch.no_grad()
    def capture(self, ids: Tensor, aux_layers: Sequence[int], **how: Any) -> tuple[Tensor, Tensor]:
        """Run int64 ``ids`` ``[B, T]``, padded on the right if at all; ``how`` is for the model.

        Returns the features ``[B, T, len(aux_layers) * H]`` and the state that the output layer
        reads ``[B, T, H]``, which is after the target's final norm. The target must have its
        layers.
        """
        captured: States = dict.fromkeys(aux_layers)
        out = self.model.base_model(ids, use_cache=False, captured=captured, **how)
        kept = [captured[layer] for layer in aux_layers]
        features = torch.cat([state for state in kept if state is not None], dim=-1)
        return features, out.last_hidden_state


def load_target(text: str, device: str = "cpu", *, layers: bool = True) -> Target:
    """Load a Hugging Face id, a folder or a .gguf file. Raises ``ValueError``, ``OSError``.

    Without ``layers`` the target has only its embeddings, final norm and output layer.
    """
    source = ModelSource.parse(text)
    arguments = dict(source.arguments)
    tokenizer = AutoTokenizer.from_pretrained(source.location, **arguments)
    if not layers and not source.gguf_file:
        model, fingerprint = load_ends(source, device)
        return Target(model, tokenizer, source.name, fingerprint)
    if source.gguf_file:
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.bfloat16, **arguments)
    fingerprint = target_fingerprint(model)
    if layers:
        keep_states(model.base_model)
    else:  # a GGUF file is read as a whole
        model.base_model.layers = nn.ModuleList()
    model.eval().requires_grad_(False).to(device)
    return Target(model, tokenizer, source.name, fingerprint)
