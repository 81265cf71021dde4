"""Protobuf messages to and from the values of `specwire.messages`, with every field checked."""

from __future__ import annotations

import math
from collections.abc import Iterable

from specwire.errors import DataLoss, InvalidRequest
from specwire.limits import MAX_MESSAGE_BYTES
from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftBudget,
    DraftCost,
    DrafterInfo,
    DraftSource,
    Proposals,
    ResendFrom,
    SequenceContext,
)
from specwire.v1 import drafter_pb2 as pb

#: Draft sources as they travel.
SOURCES = {
    DraftSource.CHAIN: pb.DRAFT_SOURCE_CHAIN,
    DraftSource.LOOKUP: pb.DRAFT_SOURCE_LOOKUP,
}
_SOURCES = {number: source for source, number in SOURCES.items()}


def encode_extend(extend: AppendEntries) -> pb.Extend:
    """Encode entries and the wish after them."""
    message = pb.Extend(
        seq=extend.seq,
        start=extend.start,
        tokens=extend.tokens,
        draft_tokens=extend.wish.chain,
        lookup_tokens=extend.wish.lookup,
    )
    if extend.opening is not None:
        opening = extend.opening
        message.opening.CopyFrom(
            pb.Opening(
                first_token=opening.first_token,
                output_start=opening.output_start,
                seed=opening.seed,
                choice_index=opening.choice_index,
                temperature=opening.temperature,
                repetition_penalty=opening.repetition_penalty,
                presence_penalty=opening.presence_penalty,
                frequency_penalty=opening.frequency_penalty,
                logit_bias=opening.logit_bias,
                source=opening.source,
                inherited=opening.inherited,
            )
        )
    return message


def decode_extend(message: pb.Extend, vocab_size: int, max_length: int) -> AppendEntries:
    """Decode and check entries.

    Raises:
        InvalidRequest: a token outside the vocabulary, entries beyond `max_length`, no entries
            and no wish, a missing opening at start 0, or an opening that cannot be drawn by.
    """
    tokens = tuple(message.tokens)
    if message.start + len(tokens) > max_length:
        raise InvalidRequest(
            f"extend: entries end at {message.start + len(tokens)}, at most {max_length}."
        )
    if max(tokens, default=0) >= vocab_size:
        raise InvalidRequest(f"extend: tokens must be below the vocabulary size {vocab_size}.")
    if message.start == 0 and tokens and not message.HasField("opening"):
        raise InvalidRequest("extend: an opening is required where start is 0.")
    wish = DraftBudget(message.draft_tokens, message.lookup_tokens)
    if not tokens and not wish:
        raise InvalidRequest("extend: it has neither entries nor a wish.")
    opening = _decode_opening(message.opening, vocab_size) if message.HasField("opening") else None
    return AppendEntries(message.seq, message.start, tokens, wish, opening)


def _decode_opening(message: pb.Opening, vocab_size: int) -> SequenceContext:
    numbers = (
        message.temperature,
        message.repetition_penalty,
        message.presence_penalty,
        message.frequency_penalty,
        *message.logit_bias.values(),
    )
    if not all(map(math.isfinite, numbers)):
        raise InvalidRequest("opening: numbers must be finite.")
    if message.temperature < 0 or message.repetition_penalty <= 0:
        raise InvalidRequest(
            "opening: temperature must be at least 0 and repetition_penalty above 0."
        )
    if message.first_token >= vocab_size or any(i >= vocab_size for i in message.logit_bias):
        raise InvalidRequest(f"opening: tokens must be below the vocabulary size {vocab_size}.")
    return SequenceContext(
        first_token=message.first_token,
        output_start=message.output_start,
        seed=message.seed,
        choice_index=message.choice_index,
        temperature=message.temperature,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=dict(message.logit_bias),
        source=message.source,
        inherited=message.inherited,
    )


def encode_proposals(
    number: int, drafts: Iterable[Draft], needs: Iterable[ResendFrom], cost: DraftCost
) -> pb.DraftResponse:
    """Encode the answers to a round."""
    return pb.DraftResponse(
        proposals=pb.Proposals(
            number=number,
            drafts=[
                pb.Draft(
                    seq=draft.seq,
                    base=draft.base,
                    tokens=draft.tokens,
                    confidence=draft.confidence,
                    source=SOURCES[draft.source],
                )
                for draft in drafts
            ],
            needs=[pb.Need(seq=n.seq, real_len=n.real_len, base=n.base) for n in needs],
            timings=pb.DraftTimings(queue_us=cost.queue_us, compute_us=cost.compute_us),
        )
    )


def decode_proposals(message: pb.Proposals, vocab_size: int) -> Proposals:
    """Decode and check answers; a draft is cut before its first token outside the vocabulary.

    Raises:
        DataLoss: an unknown source, or confidences that do not match their tokens or are no
            probabilities.
    """
    return Proposals(
        drafts=tuple(_decode_draft(draft, vocab_size) for draft in message.drafts),
        needs=tuple(ResendFrom(n.seq, n.real_len, n.base) for n in message.needs),
        cost=DraftCost(message.timings.queue_us, message.timings.compute_us),
    )


def _decode_draft(message: pb.Draft, vocab_size: int) -> Draft:
    source = _SOURCES.get(message.source)
    if source is None:
        raise DataLoss(f"draft: its source {message.source} is not known.")
    tokens = tuple(message.tokens)
    confidence = tuple(message.confidence)
    expected = len(tokens) if source is DraftSource.CHAIN else 0
    if len(confidence) != expected:
        raise DataLoss(f"draft of {len(tokens)} tokens: {len(confidence)} confidences.")
    if not all(0 <= each <= 1 for each in confidence):  # nor is NaN
        raise DataLoss(f"draft: confidence must be between 0 and 1, got {list(confidence)}.")
    valid = next((i for i, t in enumerate(tokens) if t >= vocab_size), len(tokens))
    return Draft(message.seq, message.base, tokens[:valid], confidence[:valid], source)


def encode_ack(ack: CatchUpAck) -> pb.BulkResponse:
    """Encode the answer to a bulk message."""
    return pb.BulkResponse(
        ack=pb.BulkAck(
            seq=ack.seq,
            real_len=ack.real_len,
            stop=ack.stop,
            rows=ack.rows,
            compute_us=ack.compute_us,
        )
    )


def decode_ack(message: pb.BulkAck) -> CatchUpAck:
    """Decode the answer to a bulk message."""
    return CatchUpAck(message.seq, message.real_len, message.stop, message.rows, message.compute_us)


def decode_welcome(message: pb.DescribeResponse) -> DrafterInfo:
    """Decode what a drafter announces."""
    expected = tuple(message.expected_acceptance)
    if not all(0 <= chance <= 1 for chance in expected):
        raise DataLoss(f"expected_acceptance must be between 0 and 1, got {list(expected)}.")
    return DrafterInfo(
        checkpoint_hash=message.checkpoint_hash,
        target_fingerprint=message.target_fingerprint,
        aux_layer_ids=tuple(message.aux_layer_ids),
        target_hidden_size=message.target_hidden_size,
        vocab_size=message.vocab_size,
        draft_vocab_size=message.draft_vocab_size,
        max_length=message.max_length,
        max_draft_tokens=message.max_draft_tokens,
        lookup_match=message.lookup_match,
        expected_acceptance=expected,
        device=message.device,
        max_round_bytes=message.max_round_bytes or MAX_MESSAGE_BYTES,
    )
