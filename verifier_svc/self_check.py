"""A target proves itself as it is loaded: what it serves is what its own forward gives.

The model runs a few short texts, each alone, with transformers' own attention, mask and head, and
the last once more with states off by a rounding behind every part, which tells how far rounding
leads. What serves runs the same texts side by side, in pieces, with wrong drafts that are taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from transformers import PreTrainedModel

from specwire.kernels import Reach, Segment
from verifier_svc.attention import Unsupported
from verifier_svc.blocks import BLOCK_SIZE, blocks_for
from verifier_svc.body import Body, Kept, decoder_layers, decoder_of
from verifier_svc.cache import KVCache
from verifier_svc.head import Head
from verifier_svc.survey import Survey, attending

# Rows of a text, and of the one that reaches beyond a window where one that long is cheap.
_LENGTHS, _LONGEST = (2, 19, 32), 160
# Pieces of a text, by whether they are of its prompt, as long as any of it is left.
_CUTS = ((13, True), (1, False), (6, False), (2, True), (24, True), (4, False))
# Drafts that are wrong, behind a piece that is of no prompt.
_WRONG = 3
# Rows may be so many times as far off as rounding leads half of them, and of so many side by side
# a few farther: those that were about to take other experts.
_FACTOR, _GROUP, _FEW = 1.5, 16, 0.25
# Scalings of logits by their names in configurations; some families multiply, some divide.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier_scale")


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
    def of(cls, model: PreTrainedModel, survey: Survey, layers: Sequence[int]) -> Reference:
        """Run a model whose parts are still its own, and note what enters these `layers`.

        Raises:
            Unsupported: its logits do not come from the states of its decoder.
        """
        vocabulary = model.get_input_embeddings().weight.shape[0]
        texts = tuple(_texts(survey, vocabulary))
        with attending(model, "eager"):
            runs = [_own_states(decoder_of(model), text, layers) for text in texts[:-1]]
            *last, logits = _own_logits(model, texts[-1], layers)
            with _rounded(model):
                _, moved = _own_states(decoder_of(model), texts[-1], layers)
        inputs, states = (list(each) for each in zip(*runs, last, strict=True))
        return cls(texts, inputs, states, logits, float(_far(moved, states[-1]).median()))

    def head_scale(self, linear: torch.nn.Module, config: Any) -> float:
        """What the model multiplies its logits by: by the one of its configuration that fits."""
        named = [getattr(config, name, None) for name in _SCALES]
        given = [float(value) for value in named if isinstance(value, int | float) and value]
        candidates = [1.0, *given, *(1 / value for value in given)]
        states, wanted = self.states[-1], self.logits.float()

        def far(scale: float) -> float:
            return float(_far(Head(linear, config, scale).logits(states), wanted).median())

        return min(candidates, key=far) if given else 1.0

    @torch.inference_mode()
    def check_head(self, head: Head) -> None:
        """Compare the head's logits of the model's own states.

        Raises:
            Unsupported: they differ from the model's own, or their argmax is not the best.
        """
        states, wanted = self.states[-1], self.logits.float()
        limit = max(2 * torch.finfo(states.dtype).eps, 1e-4)
        got = head.logits(states)
        if got.shape != wanted.shape or not bool((_far(got, wanted) <= limit).all()):
            raise Unsupported("its logits are more than a linear map of its final states")
        best = got.gather(1, head.argmax(states)[:, None])[:, 0]
        if not bool((best >= got.amax(-1) - limit * got.abs().amax(-1)).all()):
            raise Unsupported("its best tokens are not those of the largest logits")

    @torch.inference_mode()
    def check_states(self, body: Body, survey: Survey, layers: Sequence[int]) -> None:
        """Compare the states of the texts as they are served.

        Raises:
            Unsupported: they differ by more than rounding.
        """
        got = _served(self.texts, body, survey, tuple(layers), self.states[0])
        eps = torch.finfo(self.states[0].dtype).eps
        limit = max(_FACTOR * self.noise, 4 * eps, 1e-4)
        far = [_far(each[1], own) for each, own in zip(got, self.states, strict=True)]
        entered = [
            _far(each[0].view_as(own), own).amax(-1)
            for each, own in zip(got, self.inputs, strict=True)
        ]
        for rows in torch.split(torch.cat(far + entered), _GROUP):
            # A NaN is never near.
            if float((rows <= limit).float().mean()) < 1 - _FEW:
                raise Unsupported(
                    "its states differ from those of its own forward "
                    f"(by {float(rows.amax()):.1e}, where rounding explains {limit:.1e})"
                )


def _texts(survey: Survey, vocabulary: int) -> Iterator[Text]:
    """Short ones, one at the last positions, and a longest one, beyond a window if that is short.

    A vocabulary's first and last tokens are often special to a model.
    """
    windows = [scoring.window for scoring in survey.scorings if scoring.window is not None]
    beyond = [window + 14 for window in windows if window + 14 <= _LONGEST]
    most = max(1, survey.positions - _WRONG)
    generator = torch.Generator().manual_seed(0)
    longest = max([_LENGTHS[-1], *beyond])
    lengths = [min(length, most) for length in (*_LENGTHS[:-1], 11, longest)]
    for index, length in enumerate(lengths):
        low = min(8, vocabulary // 4)
        drawn = torch.randint(low, vocabulary - low, (length,), generator=generator)
        start = survey.positions - length if index == len(lengths) - 2 else 0
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


def _served(
    texts: Sequence[Text], body: Body, survey: Survey, layers: tuple[int, ...], like: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """By text, captured states [rows, width] and final ones of texts run side by side in pieces."""
    bases = [0]
    for text in texts:
        bases.append(bases[-1] + blocks_for(len(text.tokens) + _WRONG) * BLOCK_SIZE)
    cache = KVCache(
        blocks=bases[-1] // BLOCK_SIZE,
        layers=len(survey.scorings),
        kv_heads=survey.kv_heads,
        head_dim=survey.head_dim,
        feature_width=len(layers) * like.shape[-1],
        dtype=like.dtype,
        device=like.device,
    )
    # What was left in the cache by others must not matter.
    for pool in (*cache.keys, *cache.values):
        pool.fill_(3.0)
    final = like.new_empty(bases[-1], like.shape[-1])
    for rows, segments, kept in _steps(texts, bases):
        packed = torch.tensor(rows, device=like.device).T.contiguous()
        reach = Reach(segments, block=BLOCK_SIZE)
        hidden = body.run(packed, reach, cache, Kept(layers, cache.features, packed[2]))
        places = torch.tensor(kept, device=like.device)
        final[packed[2][places]] = hidden[places]
    spans = [slice(base, base + len(text.tokens)) for base, text in zip(bases, texts, strict=False)]
    return [(cache.features[span], final[span]) for span in spans]


def _steps(
    texts: Sequence[Text], bases: Sequence[int]
) -> Iterator[tuple[list[tuple[int, int, int]], list[Segment], list[int]]]:
    """Batches: token, position and slot of each row; segments; the rows that are no wrong draft."""
    done = [0] * len(texts)
    for step in range(max(len(text.tokens) for text in texts)):
        rows: list[tuple[int, int, int]] = []
        segments: list[Segment] = []
        kept: list[int] = []
        for index, text in enumerate(texts):
            count, prompt = next(islice(cycle(_CUTS), step + index, None))
            first, tokens = done[index], text.tokens[done[index] : done[index] + count]
            if not tokens:
                continue
            done[index] += len(tokens)
            kept += range(len(rows), len(rows) + len(tokens))
            # Behind the last position there is no room for drafts.
            spare = 0 if prompt or text.start else _WRONG
            run = (*tokens, *text.tokens[:1] * spare)
            segments.append(Segment(len(rows), len(run), bases[index], first + 1, prompt))
            rows += [
                (token, text.start + first + i, bases[index] + first + i)
                for i, token in enumerate(run)
            ]
        if not rows:
            return
        yield rows, segments, kept


def _far(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far each row [..., width] is off, as a share of the wanted row's norm."""
    norm = wanted.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    far: torch.Tensor = (got.float() - wanted.float()).norm(dim=-1) / norm
    return far
