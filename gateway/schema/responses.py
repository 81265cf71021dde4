"""What clients get."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class Answer(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorDetail(Answer):
    """What was wrong, in one sentence, and with which field of the request."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "not_found_error",
        "rate_limit_error",
        "server_error",
        "service_unavailable_error",
        "timeout_error",
    ]
    param: str | None
    code: str | None


class ErrorDocument(Answer):
    """Every answer that is no success."""

    error: ErrorDetail


class PromptDetails(Answer):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionDetails(Answer):
    """Of the drafts."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Answer):
    """Tokens; a prompt counts once, however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Report(Answer):
    """Where the request's time and drafts went: sums over its choices."""

    session_id: str
    seed: int
    rounds: int
    drafted_rounds: int
    proposed_at: list[int]
    """By position in the draft, as the others of its kind."""
    accepted_at: list[int]
    lookup_proposed_at: list[int]
    lookup_accepted_at: list[int]
    failovers: int
    timings: dict[str, int]
    """Microseconds."""


class Alternative(Answer):
    r"""A token that was likely. Parts of characters are written as `\xf0\x9f`."""

    token: str
    logprob: float
    bytes: list[int]


class DrawnToken(Alternative):
    """A token of the output, and the likeliest in its place, best first."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Answer):
    """Of a choice."""

    content: list[DrawnToken]
    refusal: None


class AnswerMessage(Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(Answer):
    """One continuation."""

    index: int
    finish_reason: FinishReason
    token_ids: list[int] = Field([])
    """Only with `return_token_ids`."""


class ChatChoice(Choice):
    """One continuation of a conversation."""

    message: AnswerMessage
    logprobs: ChatLogprobs | None


class TextLogprobs(Answer):
    r"""Of a choice. Tokens that are parts of characters are written as `bytes:\xf0\x9f`."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Choice):
    """One continuation of a text."""

    text: str
    logprobs: TextLogprobs | None


class Generated(Answer):
    """A whole answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    holdcourse: Report


class ChatCompletion(Generated):
    """The choices of a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(Generated):
    """The choices of all prompts, prompt by prompt."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(Answer):
    """The model that is served; `kernels` is the level of CPU instructions, if kernels serve."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    dtype: str
    device: str
    kernels: str | None
    fingerprint: str
    parent: None
    max_model_len: int


class ModelList(Answer):
    """All models, of which there is one."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Answer):
    """Tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Answer):
    """Text of tokens."""

    prompt: str


class SessionCard(Answer):
    """Where a session is. `updated` is in microseconds since 1970."""

    id: str
    object: Literal["session"]
    verifier: str
    epoch: int
    gateway: str
    updated: int
    turns: int
    tokens: int


class SessionDeleted(Answer):
    """A session that is forgotten."""

    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


class Directions(Answer):
    """Paths that are worth a look."""

    name: str
    docs: str
    openapi: str
    models: str
    health: str


class Health(Answer):
    """All is well."""

    status: Literal["ok"]


class Readiness(Answer):
    """Whether requests may come, and if not, why."""

    status: Literal["ready", "not ready"]
    reason: str | None
    redis: Literal["up", "down"]
    verifiers: dict[str, str]


class Version(Answer):
    """The gateway's version."""

    version: str
