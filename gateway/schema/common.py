"""Fields that both generation endpoints share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gateway.errors import context_exceeded, invalid
from gateway.model import ServedModel
from specwire.v1 import verifier_pb2

MAX_STOPS = 16
MAX_CHOICES = 128

TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=0, le=2**32 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate is not text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


def _bias(value: object) -> object:
    if isinstance(value, dict):
        try:
            return {int(token): bias for token, bias in value.items()}
        except ValueError:
            raise ValueError("keys must be token ids") from None
    return value


class Body(BaseModel):
    """A JSON object. null means absent; unknown fields are refused rather than ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Speculation(Body):
    """Whether drafts are used for this request, and how long they may be. Never changes text."""

    enabled: bool = True
    max_draft_tokens: Count | None = None


class GenerationBody(Body):
    """Sampling, length, stopping and streaming."""

    model: str = "default"
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    """Counted modulo 2^64."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=-1, le=2**32 - 1)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=100, allow_inf_nan=False)
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]],
        BeforeValidator(_bias),
        Field(max_length=1024),
    ] = {}
    stop: Text | list[Text] = []
    stop_token_ids: list[TokenId] = Field([], max_length=1024)
    min_tokens: Count = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    speculation: bool | Speculation = True
    cache_salt: str = Field("", max_length=256)
    """Only requests of the same salt reuse each other's cached prompt prefixes."""
    # Accepted and without effect on the output.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self, model: ServedModel) -> None:
        """Check what pydantic's types cannot say.

        Raises:
            ApiError: 400 that names the field, or 404 for another model.
        """
        model.check_name(self.model)
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only with stream set to true.")
        if len(self.stops) > MAX_STOPS or not all(0 < len(stop) <= 1024 for stop in self.stops):
            raise invalid("stop", f"at most {MAX_STOPS} strings of 1 to 1024 characters.")
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
            top_p=self.top_p,
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
