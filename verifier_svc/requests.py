"""GenerateRequest to Generation, with every field checked against its limit."""

from __future__ import annotations

import math

from specwire.errors import InvalidRequest
from specwire.v1 import verifier_pb2 as pb
from verifier_svc.generation import Generation, Sampling

MAX_TOP_LOGPROBS = 20
_MAX_BIASES = 1024
_MAX_STOP_TOKENS = 64
# Logits divided by less can overflow. 1e-5 passes, which fp32 stores as a little less.
_LEAST_TEMPERATURE = 0.999e-5


def decode(
    request: pb.GenerateRequest, *, vocab_size: int, max_model_len: int, max_draft_tokens: int
) -> Generation:
    """Decode and check a request.

    Raises:
        InvalidRequest: naming the field and its limit.
    """
    tokens = tuple(request.tokens)
    if not tokens:
        raise InvalidRequest("tokens: at least one is needed.")
    if len(tokens) >= max_model_len:
        raise InvalidRequest(
            f"tokens: {len(tokens)} leave no room in a context of {max_model_len}."
        )
    _check_ids("tokens", tokens, vocab_size)
    if not 0 < request.output_start <= len(tokens):
        raise InvalidRequest(f"output_start: must be from 1 to {len(tokens)}.")
    speculation = request.speculation
    cap = max_draft_tokens
    if speculation.HasField("max_draft_tokens"):
        cap = min(cap, speculation.max_draft_tokens)
    sampling = _decode_sampling(request, vocab_size, max_model_len - request.output_start)
    if request.output_start + sampling.max_tokens <= len(tokens):
        raise InvalidRequest(
            f"max_tokens: {len(tokens) - request.output_start} output tokens exist already."
        )
    return Generation(
        request_id=request.request_id,
        tokens=tokens,
        output_start=request.output_start,
        sampling=sampling,
        max_draft_tokens=0 if speculation.disabled else cap,
        choice_index=request.choice_index,
        cache_salt=request.cache_salt,
    )


def _decode_sampling(request: pb.GenerateRequest, vocab_size: int, room: int) -> Sampling:
    given = request.sampling
    sampling = Sampling(
        temperature=given.temperature if given.HasField("temperature") else 1.0,
        top_p=given.top_p if given.HasField("top_p") else 1.0,
        top_k=given.top_k,
        min_p=given.min_p,
        seed=given.seed,
        repetition_penalty=(
            given.repetition_penalty if given.HasField("repetition_penalty") else 1.0
        ),
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=dict(given.logit_bias),
        stop_token_ids=frozenset(given.stop_token_ids),
        min_tokens=given.min_tokens,
        max_tokens=given.max_tokens if given.HasField("max_tokens") else room,
        ignore_eos=given.ignore_eos,
        top_logprobs=given.top_logprobs if given.HasField("top_logprobs") else None,
    )
    _check_range("temperature", sampling.temperature, 0, 100)
    if 0 < sampling.temperature < _LEAST_TEMPERATURE:
        raise InvalidRequest(
            f"temperature: must be 0 or at least 1e-05, {sampling.temperature:g} was given."
        )
    _check_range("top_p", sampling.top_p, 0, 1, above=True)
    _check_range("min_p", sampling.min_p, 0, 1)
    _check_range("repetition_penalty", sampling.repetition_penalty, 0, 100, above=True)
    _check_range("presence_penalty", sampling.presence_penalty, -2, 2)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
    for bias in sampling.logit_bias.values():
        _check_range("logit_bias", bias, -100, 100)
    _check_range("max_tokens", sampling.max_tokens, 1, math.inf)
    _check_range("min_tokens", sampling.min_tokens, 0, sampling.max_tokens)
    _check_range("top_logprobs", sampling.top_logprobs or 0, 0, MAX_TOP_LOGPROBS)
    if len(sampling.logit_bias) > _MAX_BIASES:
        raise InvalidRequest(f"logit_bias: at most {_MAX_BIASES} tokens.")
    if len(sampling.stop_token_ids) > _MAX_STOP_TOKENS:
        raise InvalidRequest(f"stop_token_ids: at most {_MAX_STOP_TOKENS}.")
    _check_ids("logit_bias", tuple(sampling.logit_bias), vocab_size)
    _check_ids("stop_token_ids", tuple(sampling.stop_token_ids), vocab_size)
    return sampling


def _check_range(field: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    # Written so that NaN fails.
    if not ((low < value if above else low <= value) and value <= high):
        lower = "above" if above else "at least"
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise InvalidRequest(f"{field}: must be {lower} {low:g}{upper}, {value:g} was given.")


def _check_ids(field: str, ids: tuple[int, ...], vocab_size: int) -> None:
    if ids and max(ids) >= vocab_size:
        raise InvalidRequest(f"{field}: token ids must be below the vocabulary size {vocab_size}.")
