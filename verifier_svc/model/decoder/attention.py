"""The one seam between transformers and our KV cache: packed attention over slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

import speckernels as kernels
from speckernels import AttentionMetadata

NAME = "holdcourse"

_Rotation = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

# Arguments of transformers' attention functions that change what is attended to.
_NOT_SERVED = ("position_bias", "softmax_offset", "indices", "block_mask")


class Unsupported(Exception):
    """A layer asks for more, or has another shape, than what runs it can serve."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer scores keys: see `kernels.paged_attention`. `sinks` is [heads]."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def asked(
        cls, module: torch.nn.Module, query: torch.Tensor, scaling: float | None, **kwargs: Any
    ) -> Scoring:
        """What a module asks of transformers' attention functions, query [..., head_dim].

        Raises:
            Unsupported: more than is served.
        """
        for extra in _NOT_SERVED:
            if kwargs.get(extra) is not None:
                raise Unsupported(f"{type(module).__name__} asks for {extra}")
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
        sinks = kwargs.get("s_aux")
        return cls(
            scale, window or None, softcap or None, None if sinks is None else sinks.detach()
        )


@dataclass(slots=True)
class AttentionPlan:
    """What a packed batch writes to and reads from the cache, and what is kept on the way.

    `slots` is int64 [rows]; `keys` and `values` hold per layer [slots, kv_heads, head_dim].
    States [rows, hidden] that are wanted have their layer in `captured` from the start. `scored`
    fills with what each layer asked for.

    Layers find the plan of their forward by `current`: not all of them hand arguments on.
    """

    reach: AttentionMetadata
    slots: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    captured: dict[int, torch.Tensor] = field(default_factory=dict)
    scored: dict[int, Scoring] = field(default_factory=dict)
    _rotations: dict[int, tuple[torch.Tensor, _Rotation]] = field(default_factory=dict)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Around the forward that is to follow this plan; others may run within it."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @staticmethod
    def current() -> AttentionPlan | None:
        """The plan of the forward that is running, if it follows one."""
        return _current.get()

    def turned(self, cosines: torch.Tensor, sines: torch.Tensor) -> _Rotation:
        """What `kernels.apply_rope` takes, from transformers' tables [1, rows, turned].

        It is made once for all layers that are given these very tables.
        """
        tables, rotation = self._rotations.get(id(cosines), (None, None))
        if rotation is None or tables is not cosines:
            half = cosines.shape[-1] // 2
            signed = torch.cat([-sines[0, :, None, :half], sines[0, :, None, half:]], -1)
            # Where nothing asks for them, rows take the tables as they are, and gather nothing.
            positions = torch.arange(cosines.shape[1]) if cosines.is_cpu else None
            rotation = cosines[0, :, None].contiguous(), signed, positions
            self._rotations[id(cosines)] = cosines, rotation
        return rotation

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Keep a layer's keys and values [rows, kv_heads, d], then attend as the plan says.

        `query` is [rows, heads, d]; the result too, contiguous.

        Raises:
            Unsupported: the layer has attended before, or has another shape than the cache.
        """
        if layer in self.scored:
            raise Unsupported(f"layer {layer} attends more than once")
        keys, values = self.keys[layer], self.values[layer]
        if key.shape[1:] != keys.shape[1:] or value.shape[1:] != values.shape[1:]:
            raise Unsupported(f"layer {layer} has other heads than those before it")
        self.scored[layer] = scoring
        keys.index_copy_(0, self.slots, key)
        values.index_copy_(0, self.slots, value)
        return kernels.paged_attention(
            query,
            keys,
            values,
            self.reach,
            scoring.scale,
            window=scoring.window,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
        )


_current: ContextVar[AttentionPlan | None] = ContextVar("attention plan", default=None)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Write the batch's keys and values, then attend sequence by sequence.

    Follows transformers' attention interface: query [1, heads, rows, d], key and value
    [1, kv_heads, rows, d], returns [1, rows, heads, d]. The mask is never built: what rows see
    follows from the plan and the layer's window.

    Raises:
        Unsupported: the layer asks for more than is served.
    """
    plan = AttentionPlan.current()
    if plan is None:
        raise Unsupported("no batch is being run")
    if attention_mask is not None:
        raise Unsupported(f"{type(module).__name__} has a mask of its own")
    scoring = Scoring.asked(module, query, scaling, **kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    query, key, value = (state[0].transpose(0, 1) for state in (query, key, value))
    return plan.attend(layer, query, key, value, scoring)[None], None


AttentionInterface.register(NAME, packed_attention)
