"""Fields that both generation endpoints share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Tag

from gateway.backends.served_model import ServedModel
from gateway.errors import context_exceeded, invalid
from gateway.schema.body import Body
from gateway.schema.fields import (
    Biases,
    Count,
    Off,
    Positive,
    Seed,
    Stops,
    Text,
    TokenId,
    Whole,
    by_type,
    inside,
    needs,
)
from specwire import limits
from specwire.v1 import verifier_pb2

MAX_CHOICES = 128
# As OpenAI's.
MAX_METADATA = 16
# As OpenAI's, of a completion that names no limit.
DEFAULT_MAX_TOKENS = 16
MAX_TOKENS = (
    "Prompt and output together must fit the model's context. Left out, a conversation is "
    f"continued for as long as they do, a text by {DEFAULT_MAX_TOKENS} tokens."
)
NEEDS_STREAM = needs("stream_options", {"type": "object"}, "stream")


class StreamOptions(Body):
    """What a stream tells beside its text."""

    include_usage: bool = False
    """A last chunk without choices has the usage; the others have null."""
    continuous_usage_stats: bool = False
    """With include_usage, every chunk has the usage so far."""
    include_obfuscation: Off = False


class Speculation(Body):
    """Whether drafts are used for this request, and how long they may be. Never changes text."""

    enabled: bool = True
    max_draft_tokens: Count | None = None
    """A number above the server's own maximum counts as that."""


class GenerationBody(Body):
    """Sampling, length, stopping and streaming."""

    model: str = "default"
    """The model's name, with or without its owner's; or `default`."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    n: Whole = Field(1, ge=1, le=MAX_CHOICES)
    """Choices for each prompt. Those of a request may be no more than the gateway takes at once."""
    seed: Seed | None = None
    """Same seed, same text. Left out, null or -1: a new random one, which `holdcourse.seed` in the
    answer tells. Other numbers count modulo 2^64."""
    max_tokens: Positive | None = Field(None, description=MAX_TOKENS)
    temperature: Annotated[float, inside(limits.TEMPERATURE)] = 1.0
    """Below 0.00001 the likeliest token is drawn, as with 0."""
    top_p: Annotated[float, inside(limits.TOP_P)] = 1.0
    top_k: Whole = Field(0, ge=-1, le=2**32 - 1)
    """0 and -1 keep all tokens."""
    min_p: Annotated[float, inside(limits.MIN_P)] = 0.0
    presence_penalty: Annotated[float, inside(limits.PRESENCE_PENALTY)] = 0.0
    frequency_penalty: Annotated[float, inside(limits.FREQUENCY_PENALTY)] = 0.0
    repetition_penalty: Annotated[float, inside(limits.REPETITION_PENALTY)] = 1.0
    logit_bias: Biases = Field({})
    """Token ids must be below the size of the model's vocabulary, here and elsewhere."""
    stop: Stops = Field([])
    stop_token_ids: list[TokenId] = Field([], max_length=limits.MAX_STOP_TOKENS, fail_fast=True)
    min_tokens: Count = 0
    """At most as many as the output may have."""
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    speculation: Annotated[
        Annotated[bool, Tag("bool")] | Annotated[Speculation, Tag("dict")],
        by_type("true, false or an object", bool, dict),
    ] = True
    cache_salt: Text = Field("", max_length=256)
    """Only requests of the same salt reuse each other's cached prompt prefixes."""
    # Accepted and without effect on the output.
    user: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=MAX_METADATA, fail_fast=True)
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self, model: ServedModel) -> None:
        """Check what pydantic's types cannot say.

        Raises:
            ApiError: 400 that names the field, or 404 for another model.
        """
        model.check_name(self.model)
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only with stream set to true.")
        for field, ids in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
        ):
            check_ids(field, ids, model)

    def check_length(
        self, field: str, model: ServedModel, prompt: int, max_tokens: int | None
    ) -> int:
        """Return how many tokens may be generated after a prompt of `prompt` tokens.

        Raises:
            ApiError: 400, prompt and output do not fit, or min_tokens is above the output's end.
        """
        room = model.max_len - prompt
        if room < 1 or (max_tokens or 1) > room:
            raise context_exceeded(field, prompt, max_tokens or 1, model.max_len)
        limit = max_tokens or room
        if self.min_tokens > limit:
            raise invalid("min_tokens", f"at most the {limit} tokens that the output may have.")
        return limit

    def sampling(
        self, seed: int, max_tokens: int, top_logprobs: int | None
    ) -> verifier_pb2.Sampling:
        """Write the parameters as the verifier takes them."""
        return verifier_pb2.Sampling(
            temperature=self.temperature,
            # A smaller one, which fp32 may round to 0, leaves the likeliest token, too.
            top_p=max(self.top_p, limits.LEAST_FP32),
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            seed=seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            stop_token_ids=self.stop_token_ids,
            min_tokens=self.min_tokens,
            max_tokens=max_tokens,
            ignore_eos=self.ignore_eos,
            top_logprobs=top_logprobs,
        )

    @property
    def fixed_seed(self) -> int | None:
        """The seed as the verifier counts it; None if one is to be drawn."""
        return None if self.seed is None or self.seed == -1 else self.seed % 2**64

    def drafting(self) -> verifier_pb2.Speculation:
        if isinstance(self.speculation, bool):
            return verifier_pb2.Speculation(disabled=not self.speculation)
        return verifier_pb2.Speculation(
            disabled=not self.speculation.enabled,
            max_draft_tokens=self.speculation.max_draft_tokens,
        )


def check_ids(field: str, ids: Any, model: ServedModel) -> None:
    """Refuse token ids outside the vocabulary.

    Raises:
        ApiError: 400 that names the field.
    """
    worst = max(ids, default=0)
    if worst >= model.vocab_size:
        raise invalid(field, f"token id {worst} is not below {model.vocab_size}.")


def check_top_logprobs(field: str, count: int, model: ServedModel) -> None:
    """Refuse more alternatives a token than the verifier gives.

    Raises:
        ApiError: 400 that names the field.
    """
    if count > model.wire.max_top_logprobs:
        raise invalid(field, f"at most {model.wire.max_top_logprobs}.")
