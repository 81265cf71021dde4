"""What a model asks of attention: seen in a forward of its own, not read off its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from verifier_svc.model.decoder.attention import Scoring, Unsupported
from verifier_svc.model.decoder.backends import decoder_of

_NAME = "holdcourse-survey"


@dataclass(frozen=True, slots=True)
class AttentionSurvey:
    """What all layers attend with: the KV that they keep, and how each scores keys.

    Beyond `positions` keys a row would see others than a cache of all of them with windows shows.
    """

    kv_heads: int
    head_dim: int
    positions: int
    scorings: tuple[Scoring, ...]


@dataclass(frozen=True, slots=True)
class _Sight:
    """How many keys a row sees: the last `window` of them, or those from its chunk's first on."""

    window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of attention: its module, [kv_heads, width] of keys and values, what is asked."""

    module: torch.nn.Module
    key: tuple[int, int]
    value: tuple[int, int]
    scoring: Scoring
    sight: _Sight


@dataclass(slots=True)
class _Notes:
    """What has been seen so far. Masks that transformers was given, by their identity."""

    positions: int
    calls: list[_Call] = field(default_factory=list)
    masks: dict[int, tuple[torch.Tensor, _Sight]] = field(default_factory=dict)


_notes: ContextVar[_Notes] = ContextVar("notes of a survey")


@torch.inference_mode()
def survey(model: PreTrainedModel, num_layers: int, positions: int) -> AttentionSurvey:
    """See what a model's layers ask for, for sequences of so many positions at most.

    Raises:
        Unsupported: they ask for more than is served, or do not ask transformers.
    """
    name, notes = type(model).__name__, _Notes(positions)
    token = _notes.set(notes)
    rows = torch.arange(2, device=model.device)[None]
    try:
        with attending(model, _NAME):
            decoder_of(model)(input_ids=rows, position_ids=rows, use_cache=False)
    except Unsupported:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise Unsupported(f"{name} does not run on tokens and positions alone ({first})") from error
    finally:
        _notes.reset(token)
    calls = notes.calls
    layers = [getattr(call.module, "layer_idx", None) for call in calls]
    if not calls:
        raise Unsupported(f"{name} does not attend through transformers' attention interface")
    if len(set(layers)) < len(layers):
        raise Unsupported(f"{name} attends more than once in a layer")
    if layers != list(range(num_layers)):
        raise Unsupported(f"only {len(calls)} of the {num_layers} layers of {name} attend")
    return _agreed(name, calls, positions)


def _agreed(name: str, calls: list[_Call], positions: int) -> AttentionSurvey:
    """What all layers have in common."""
    for call in calls:
        if call.key != call.value:
            raise Unsupported(
                f"{name} has keys of {call.key[1]} and values of {call.value[1]} elements"
            )
        if call.key != calls[0].key:
            raise Unsupported(
                f"layers of {name} have key-value heads of different shapes "
                f"({calls[0].key[0]} of {calls[0].key[1]} elements, {call.key[0]} of {call.key[1]})"
            )
    chunks = [call.sight.chunk for call in calls if call.sight.chunk is not None]
    return AttentionSurvey(
        *calls[0].key, min([positions, *chunks]), tuple(call.scoring for call in calls)
    )


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model attend by another of transformers' functions meanwhile."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Note what a layer asks of attention; gives nothing, in attention's shape."""
    notes, name = _notes.get(), type(module).__name__
    if key.shape[2] != query.shape[2]:
        raise Unsupported(f"{name} attends to {key.shape[2]} keys in a batch of {query.shape[2]}")
    scoring = Scoring.asked(module, query, scaling, **kwargs)
    if scoring.window is not None and scoring.window >= notes.positions:
        scoring = replace(scoring, window=None)
    sight = _Sight(scoring.window)
    if attention_mask is not None:
        mask, sight = notes.masks.get(id(attention_mask), (None, sight))
        if mask is not attention_mask:
            raise Unsupported(f"{name} has a mask of its own")
    if sight.window != scoring.window:
        raise Unsupported(
            f"the mask of {name} has a window of {sight.window} keys, and its attention one of "
            f"{scoring.window}"
        )
    kept, read = ((state.shape[1], state.shape[3]) for state in (key, value))
    notes.calls.append(_Call(module, kept, read, scoring, sight))
    rows, heads = query.shape[2], query.shape[1]
    return value.new_zeros(1, rows, heads, value.shape[-1]), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    device: torch.device | str = "cpu",
    **_: Any,
) -> torch.Tensor:
    """Note what a mask shows; gives a tensor in its place."""
    notes = _notes.get()
    mask = torch.zeros(batch_size, 1, q_length, kv_length, device=device)
    notes.masks[id(mask)] = mask, _sight(mask_function, notes.positions, device)
    return mask


def _sight(mask_function: Callable[..., Any], positions: int, device: torch.device | str) -> _Sight:
    """How far rows see, told by rows near and far.

    Raises:
        Unsupported: neither all keys before them, nor a window or a chunk of them.
    """
    rows = sorted({positions - 1, positions * 2 // 3, positions // 2, positions // 3, 1})
    seen: list[int] = []
    for row in rows:
        keys = torch.arange(row + 2, device=device)
        zero = torch.zeros((), dtype=torch.long, device=device)
        shown = torch.as_tensor(mask_function(zero, zero, zero + row, keys)).expand(row + 2)
        if bool(shown[row + 1]):
            raise Unsupported("its rows see those behind them")
        count = int(shown.sum())
        if not bool(shown[row + 1 - count : row + 1].all()):
            raise Unsupported("its rows see other keys than the last ones before them")
        seen.append(count)
    if seen == [row + 1 for row in rows]:
        return _Sight()
    window = max(seen)
    if seen == [min(row + 1, window) for row in rows]:
        return _Sight(window)
    first = next(row + 1 for row, count in zip(rows, seen, strict=True) if count <= row)
    for chunk in range(max(seen), first):
        if seen == [row % chunk + 1 for row in rows]:
            return _Sight(chunk=chunk)
    raise Unsupported("its rows see neither all keys before them nor a window of them")


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
