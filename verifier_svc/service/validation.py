"""GenerateRequest to Generation, with every field checked against its limit."""

from __future__ import annotations

from specwire import limits
from specwire.errors import InvalidRequest
from specwire.v1 import verifier_pb2 as pb
from verifier_svc.request.types import GenerationRequest, Sampling


def decode_request(
    request: pb.GenerateRequest, *, vocab_size: int, max_model_len: int, max_draft_tokens: int
) -> GenerationRequest:
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
    return GenerationRequest(
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
        temperature=_temperature(given),
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
    _check_range("temperature", given.temperature, limits.TEMPERATURE)
    _check_range("top_p", sampling.top_p, limits.TOP_P)
    _check_range("min_p", sampling.min_p, limits.MIN_P)
    _check_range("repetition_penalty", sampling.repetition_penalty, limits.REPETITION_PENALTY)
    _check_range("presence_penalty", sampling.presence_penalty, limits.PRESENCE_PENALTY)
    _check_range("frequency_penalty", sampling.frequency_penalty, limits.FREQUENCY_PENALTY)
    for bias in sampling.logit_bias.values():
        _check_range("logit_bias", bias, limits.LOGIT_BIAS)
    if not sampling.max_tokens:
        raise InvalidRequest("max_tokens: must be at least 1, 0 was given.")
    _check_count("min_tokens", sampling.min_tokens, sampling.max_tokens)
    _check_count("top_logprobs", sampling.top_logprobs or 0, limits.MAX_TOP_LOGPROBS)
    if len(sampling.logit_bias) > limits.MAX_BIASES:
        raise InvalidRequest(f"logit_bias: at most {limits.MAX_BIASES} tokens.")
    if len(sampling.stop_token_ids) > limits.MAX_STOP_TOKENS:
        raise InvalidRequest(f"stop_token_ids: at most {limits.MAX_STOP_TOKENS}.")
    _check_ids("logit_bias", tuple(sampling.logit_bias), vocab_size)
    _check_ids("stop_token_ids", tuple(sampling.stop_token_ids), vocab_size)
    return sampling


def _temperature(given: pb.Sampling) -> float:
    temperature = given.temperature if given.HasField("temperature") else 1.0
    tiny = 0 < temperature < limits.as_fp32(limits.LEAST_TEMPERATURE)
    return 0.0 if tiny else temperature


def _check_range(field: str, value: float, allowed: limits.Range) -> None:
    if not allowed.admits(value):
        raise InvalidRequest(f"{field}: must be {allowed}, {value:g} was given.")


def _check_count(field: str, value: int, most: int) -> None:
    if value > most:
        raise InvalidRequest(f"{field}: must be at least 0 and at most {most}, {value} was given.")


def _check_ids(field: str, ids: tuple[int, ...], vocab_size: int) -> None:
    if ids and max(ids) >= vocab_size:
        raise InvalidRequest(f"{field}: token ids must be below the vocabulary size {vocab_size}.")
