"""What a model's own forward gives of a few short texts, and how far rounding leads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel

from verifier_svc.model.decoder.attention import Unsupported
from verifier_svc.model.decoder.backends import decoder_layers, decoder_of
from verifier_svc.model.loading.weight_check import some
from verifier_svc.model.self_check.attention_survey import AttentionSurvey, attending

# Rows of texts, and of the last one where it reaches beyond a window that is as short.
_LENGTHS, _LONGEST = (2, 19, 11, 32), 160
# Which of them has the last positions.
_LAST_POSITIONS = 2
#: Positions behind a text's last that are left for drafts.
SPARE = 3


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens of one sequence, the first of them at position `start`."""

    tokens: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model's own forward gives of texts, each alone.

    By text: `inputs` are the states that enter layers [rows, layers, hidden], `states` leave its
    decoder [rows, hidden]. `logits` [rows, vocab] are those of the last text. `noise` is how far a
    rounding behind every part leads final states, as a share of their norm.
    """

    texts: tuple[Text, ...]
    inputs: list[torch.Tensor]
    states: list[torch.Tensor]
    logits: torch.Tensor
    noise: float

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: PreTrainedModel, survey: AttentionSurvey, layers: Sequence[int]
    ) -> Reference:
        """Run a model whose parts are still its own, and note what enters these `layers`.

        Raises:
            Unsupported: its logits do not come from the states of its decoder, or are not finite.
        """
        vocabulary = model.get_input_embeddings().weight.shape[0]
        texts = tuple(_texts(survey, vocabulary))
        with attending(model, "eager"):
            runs = [_own_states(decoder_of(model), text, layers) for text in texts[:-1]]
            *last, logits = _own_logits(model, texts[-1], layers)
            with _rounded(model):
                _, moved = _own_states(decoder_of(model), texts[-1], layers)
        inputs, states = (list(each) for each in zip(*runs, last, strict=True))
        if not all(bool(each.isfinite().all()) for each in (*states, logits)):
            raise Unsupported(f"its own forward gives values that are not finite{_blamed(model)}")
        return cls(texts, inputs, states, logits, float(far(moved, states[-1]).median()))


def _blamed(model: PreTrainedModel) -> str:
    """Which of a model's tensors are not finite themselves, as the end of a sentence."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    names = [name for name, tensor in tensors if not bool(tensor.isfinite().all())]
    return f" (nor is {some(names)})" if names else ""


def _texts(survey: AttentionSurvey, vocabulary: int) -> Iterator[Text]:
    """Short ones, one at the last positions, and a longest one, beyond a window if that is short.

    A vocabulary's first and last tokens are often special to a model.
    """
    windows = [scoring.window for scoring in survey.scorings if scoring.window is not None]
    beyond = [window + 14 for window in windows if window + 14 <= _LONGEST]
    most = max(1, survey.positions - SPARE)
    generator = torch.Generator().manual_seed(0)
    longest = max([_LENGTHS[-1], *beyond])
    lengths = [min(length, most) for length in (*_LENGTHS[:-1], longest)]
    for index, length in enumerate(lengths):
        low = min(8, vocabulary // 4)
        drawn = torch.randint(low, vocabulary - low, (length,), generator=generator)
        start = survey.positions - length if index == _LAST_POSITIONS else 0
        yield Text(tuple(drawn.tolist()), start)


def _own_logits(
    model: PreTrainedModel, text: Text, layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of layers, final states and logits of a text, by the model alone."""
    with _watched(decoder_of(model), layers) as seen:
        logits = model(**_arguments(text, model.device)).logits[0]
    return *seen.all(layers), logits


def _own_states(
    decoder: torch.nn.Module, text: Text, layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of layers and final states of a text, by the model's decoder alone."""
    with _watched(decoder, layers) as seen:
        decoder(**_arguments(text, next(decoder.parameters()).device))
    return seen.all(layers)


def _arguments(text: Text, device: torch.device) -> dict[str, Any]:
    places = torch.arange(len(text.tokens), device=device)[None] + text.start
    tokens = torch.tensor([text.tokens], device=device)
    return {"input_ids": tokens, "position_ids": places, "use_cache": False}


@dataclass(slots=True)
class _Seen:
    """What enters layers, and what leaves their decoder, in a forward of one text."""

    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    final: list[torch.Tensor] = field(default_factory=list)

    def all(self, layers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of `layers` [rows, layers, hidden] and final states [rows, hidden]."""
        if len(self.final) != 1:
            raise Unsupported("its logits do not come from the states of its decoder")
        inputs = [self.inputs[index] for index in layers]
        if any(state.dim() != 3 for state in inputs):
            raise Unsupported("its layers hand on more than one state a row")
        return torch.stack([state[0] for state in inputs], 1), self.final[0][0]


@contextmanager
def _watched(decoder: torch.nn.Module, layers: Sequence[int]) -> Iterator[_Seen]:
    """Note what a decoder does meanwhile."""
    seen, parts = _Seen(), decoder_layers(decoder, max(layers) + 1)

    def keep(index: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.inputs[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = [parts[i].register_forward_pre_hook(keep(i), with_kwargs=True) for i in set(layers)]
    hooks.append(decoder.register_forward_hook(lambda *args: seen.final.append(args[2][0])))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _rounded(model: PreTrainedModel) -> Iterator[None]:
    """States leave every part of the model off by a rounding of their dtype."""
    generator = torch.Generator().manual_seed(1)

    def moved(state: Any) -> Any:
        if not isinstance(state, torch.Tensor) or not state.is_floating_point():
            return state
        off = torch.randn(state.shape, generator=generator).to(state.device)
        return (state.float() * (1 + torch.finfo(model.dtype).eps * off)).to(state.dtype)

    def hook(_: Any, __: Any, output: Any) -> Any:
        return (moved(output[0]), *output[1:]) if isinstance(output, tuple) else moved(output)

    hooks = [part.register_forward_hook(hook) for part in model.modules()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def far(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far each row [..., width] is off, as a share of the wanted row's norm."""
    norm = wanted.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    share: torch.Tensor = (got.float() - wanted.float()).norm(dim=-1) / norm
    return share
