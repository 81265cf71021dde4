"""The frozen target, and the source of features that runs it in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from drafter_svc.train.ends import load_ends
from drafter_svc.train.source import Captured
from specwire.target import TargetSource
from specwire.torch import target_fingerprint

# Tokens in one forward on an accelerator, padding included.
_FORWARD_TOKENS = 16384


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
    def capture(self, ids: Tensor, aux_layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Run int64 ``ids`` ``[B, T]``, padded on the right if at all.

        Returns the features ``[B, T, len(aux_layers) * H]`` and the state that the output layer
        reads ``[B, T, H]``, which is after the target's final norm.
        """
        out = self.model.base_model(ids, use_cache=False, output_hidden_states=True)
        features = torch.cat([out.hidden_states[layer] for layer in aux_layers], dim=-1)
        return features, out.last_hidden_state


class LocalSource:
    """A ``FeatureSource`` that runs the target in this process.

    On a CPU each document has a forward of its own: its states then never depend on its company,
    and products of a few hundred rows are the fastest there. Elsewhere documents of similar
    length share padded forwards.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._limit: int = target.config.max_position_embeddings

    def capture(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...]
    ) -> list[Captured]:
        """States of each document, in order. Raises ValueError for a document over the limit."""
        captured: dict[int, Captured] = {}
        for group in self._groups([len(ids) for ids in documents]):
            width = max(len(documents[index]) for index in group)
            device = self._target.embedding.weight.device
            ids = torch.zeros(len(group), width, dtype=torch.int64)
            for row, index in enumerate(group):
                ids[row, : len(documents[index])] = torch.tensor(documents[index])
            features, final = self._target.capture(ids.to(device), aux_layers)
            for row, index in enumerate(group):
                length = len(documents[index])
                captured[index] = Captured(features[row, :length], final[row, :length])
        return [captured[index] for index in range(len(documents))]

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        if (longest := max(lengths)) > self._limit:
            raise ValueError(
                f"a document of {longest} tokens is over the target's limit of {self._limit}"
            )
        alone = self._target.embedding.weight.device.type == "cpu"
        groups: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            width = lengths[index]
            if alone or not groups or (len(groups[-1]) + 1) * width > _FORWARD_TOKENS:
                groups.append([])
            groups[-1].append(index)
        return groups


def load_target(text: str, device: str = "cpu", *, layers: bool = True) -> Target:
    """Load a Hugging Face id, a folder or a .gguf file. Raises ``ValueError``, ``OSError``.

    Without ``layers`` the target has only its embeddings, final norm and output layer.
    """
    source = TargetSource.parse(text)
    arguments = dict(source.arguments)
    tokenizer = AutoTokenizer.from_pretrained(source.location, **arguments)
    if not layers and not source.gguf_file:
        model, fingerprint = load_ends(source, device)
        return Target(model, tokenizer, source.name, fingerprint)
    if source.gguf_file:
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.bfloat16, **arguments)
    fingerprint = target_fingerprint(model)
    if not layers:  # a GGUF file is read as a whole
        model.base_model.layers = nn.ModuleList()
    model.eval().requires_grad_(False).to(device)
    return Target(model, tokenizer, source.name, fingerprint)
