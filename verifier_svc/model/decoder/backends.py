"""A target's decoder over packed rows: transformers' own layers, or all of them as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from speckernels import AttentionMetadata, DecoderWeights, KVMemory, LayerWeights, LlamaKernel
from speckernels.packed_linear import PackedLinear
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import AttentionPlan, Unsupported
from verifier_svc.model.decoder.fused_layers import FusedAttention, FusedMLP, FusedNorm

# Few rows at a time run first uses of all operators.
_WARM = (1, 2, 4, 8, 16)
# Halves of a head are turned sixteen elements at a time.
_HEAD_STEP = 32
_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """Where states are kept: those of `layers` side by side in `features` [*, width].

    A state is the input to the layer of that number, or the output of the last one under the number
    of layers. Each row of a batch takes the row of `features` that `rows`, int64 [n], says.
    """

    layers: tuple[int, ...]
    features: torch.Tensor
    rows: torch.Tensor


class DecoderBackend(Protocol):
    """From tokens to final states, keys and values kept in a cache.

    Batches of `sizes` rows are worth running before the first request.
    """

    sizes: tuple[int, ...]

    @property
    def form(self) -> str:
        """How it is run: as one "kernel", as recorded "graphs", or by its "layers"."""

    def run(
        self, rows: torch.Tensor, reach: AttentionMetadata, cache: KVCache, kept: CaptureSpec
    ) -> torch.Tensor:
        """Run int64 [3, n], tokens, positions and slots. Returns normed states [n, hidden]."""


class TransformersBackend:
    """The decoder of transformers, of standard attention, whose layers' hooks capture."""

    sizes: tuple[int, ...] = _WARM
    form = "layers"

    def __init__(self, module: Any, num_layers: int) -> None:
        self._module = module
        layers = decoder_layers(module, num_layers)
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(_keep_input(index), with_kwargs=True)
        layers[-1].register_forward_hook(_keep_output(num_layers))

    def run(
        self, rows: torch.Tensor, reach: AttentionMetadata, cache: KVCache, kept: CaptureSpec
    ) -> torch.Tensor:
        """See `DecoderBackend`."""
        # What a forward captures travels with it: two of them may run at once.
        captured: dict[int, torch.Tensor] = dict.fromkeys(kept.layers, kept.features)
        plan = AttentionPlan(reach, rows[2], cache.keys, cache.values, captured=captured)
        with plan.followed():
            hidden: torch.Tensor = self._module(
                input_ids=rows[:1], position_ids=rows[1:2], use_cache=False
            ).last_hidden_state[0]
        if captured:
            features = torch.cat([captured[index] for index in kept.layers], -1)
            kept.features.index_copy_(0, kept.rows, features)
        return hidden


def decoder_of(model: Any) -> Any:
    """What makes final states of tokens, inside a model that makes logits of them."""
    decoder = model.get_decoder()
    if isinstance(decoder, PreTrainedModel) and decoder is not model:
        return decoder
    # Some have a head of that name, or have their decoder under a name of their own.
    parts = (part for part in model.children() if isinstance(part, PreTrainedModel))
    return next(parts, model)


def decoder_layers(module: torch.nn.Module, num_layers: int) -> list[torch.nn.Module]:
    """The layers of a decoder; empty where it has no list of so many."""
    for _, part in module.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) >= num_layers:
            return list(part[:num_layers])
    return []


class CpuKernelBackend:
    """A decoder of Llama's form on a CPU, in bf16, as one kernel."""

    sizes: tuple[int, ...] = _WARM
    form = "kernel"

    def __init__(self, decoder: LlamaKernel, width: int) -> None:
        """Take the `width` of states."""
        self._decoder = decoder
        self._width = width
        self._memories: WeakKeyDictionary[KVCache, KVMemory] = WeakKeyDictionary()

    @classmethod
    def of(cls, module: Any, num_layers: int, positions: int) -> CpuKernelBackend | None:
        """The form of a decoder whose parts are fused; None if the kernel cannot run it.

        Sequences have so many `positions` at most.
        """
        layers = decoder_layers(module, num_layers)
        weights = [each for layer in layers if (each := _layer_weights(layer)) is not None]
        norm, rotary = getattr(module, "norm", None), getattr(module, "rotary_emb", None)
        embedding = getattr(module, "embed_tokens", None)
        if len(weights) < num_layers or not isinstance(norm, FusedNorm):
            return None
        if rotary is None or not isinstance(embedding, torch.nn.Embedding):
            return None
        places = torch.arange(positions)[None]
        cosines, sines = (table[0] for table in rotary(norm.weight[None, None], places))
        if cosines.shape[-1] != weights[0].dim:
            return None
        half = cosines.shape[-1] // 2
        # A copy, which a tied head shares: all other weights of the mapped file have been packed.
        embedding.weight.data = embedding.weight.data.clone()
        decoder = DecoderWeights(
            layers=weights,
            embedding=embedding.weight.detach(),
            cosines=cosines.contiguous(),
            sines=torch.cat([-sines[:, :half], sines[:, half:]], -1),
            final_norm=norm.weight,
            eps=norm.eps,
        )
        return cls(LlamaKernel(decoder), len(norm.weight))

    def run(
        self, rows: torch.Tensor, reach: AttentionMetadata, cache: KVCache, kept: CaptureSpec
    ) -> torch.Tensor:
        """See `DecoderBackend`.

        Raises:
            Unsupported: the kernel does not take this shape.
        """
        if (memory := self._memories.get(cache)) is None:
            memory = self._memories[cache] = KVMemory(cache.keys, cache.values)
        captured = _columns(kept.layers, self._width)
        hidden = self._decoder.run(rows, reach, memory, captured, kept.features, kept.rows)
        if hidden is None:
            raise Unsupported("no kernel takes heads of this shape")
        return hidden


@lru_cache(maxsize=16)
def _columns(layers: tuple[int, ...], width: int) -> torch.Tensor:
    """Each layer with the column where its state begins: int64 [layers, 2]."""
    pairs = [(layer, i * width) for i, layer in enumerate(layers)]
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def _keep_input(index: int) -> Any:
    """A hook that keeps the input to layer `index` where the forward wants it."""

    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plan = AttentionPlan.current()
        if plan is not None and index in plan.captured:
            plan.captured[index] = (args[0] if args else kwargs["hidden_states"])[0]

    return hook


def _keep_output(index: int) -> Any:
    """A hook on the last layer that keeps what leaves it, under the number behind its own."""

    def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
        plan = AttentionPlan.current()
        if plan is not None and index in plan.captured:
            plan.captured[index] = (output[0] if isinstance(output, tuple) else output)[0]

    return hook


def _layer_weights(layer: Any) -> LayerWeights | None:
    """A layer's weights as the kernel takes them; None if it is of another form."""
    if {name for name, _ in layer.named_children()} != _PARTS:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    norms = layer.input_layernorm, layer.post_attention_layernorm
    if not (
        isinstance(attention, FusedAttention)
        and isinstance(mlp, FusedMLP)
        and all(isinstance(norm, FusedNorm) for norm in norms)
        and norms[0].eps == norms[1].eps
        and attention.width % _HEAD_STEP == 0
    ):
        return None
    linears = (attention.qkv, attention.out, mlp.gate_up, mlp.down)
    products = [each.product for each in linears if isinstance(each, PackedLinear)]
    tiled = [product for product in products if product is not None]
    heads = [norm for norm in attention.norms if isinstance(norm, FusedNorm)]
    if len(tiled) < len(linears) or (any(attention.norms) and len(heads) < 2):
        return None
    qkv, out, gate_up, down = tiled
    scoring = attention.scoring
    return LayerWeights(
        input_norm=norms[0].weight,
        post_norm=norms[1].weight,
        query_norm=heads[0].weight if heads else None,
        key_norm=heads[1].weight if heads else None,
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        dim=attention.width,
        eps=norms[0].eps,
        head_eps=heads[0].eps if heads else 0.0,
        scale=scoring.scale,
        window=scoring.window,
        softcap=scoring.softcap,
        sinks=None if scoring.sinks is None else scoring.sinks.float().contiguous(),
    )
