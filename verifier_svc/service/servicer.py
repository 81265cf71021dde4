"""VerifierService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc.aio

from specwire.codec import SOURCES
from specwire.errors import Incompatible, NotFinite, Overloaded, Unavailable
from specwire.message_counter import MessageCounter
from specwire.tensor import pack_floats
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import VerifierServiceServicer
from verifier_svc.engine.dispatcher import Dispatcher
from verifier_svc.engine.engine import Cancel, Engine, Submit
from verifier_svc.metrics import Metrics
from verifier_svc.request.types import Failed, Finished, FinishReason, RoundOutput
from verifier_svc.service import validation
from verifier_svc.service.features_calls import FeatureCalls

Context = grpc.aio.ServicerContext[Any, Any]

_CHUNK_BYTES = 512 << 10
_MAX_SESSIONS = 100_000
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class VerifierServicer(VerifierServiceServicer):
    """The service; see specwire/v1/verifier.proto."""

    def __init__(
        self,
        *,
        engine: Engine,
        dispatcher: Dispatcher,
        model: pb.Model,
        tokenizer_files: dict[str, bytes],
        max_waiting: int,
        max_document_len: int,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._model = model
        self._files = tokenizer_files
        self._max_calls = model.max_sequences + max_waiting
        self._metrics = metrics
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._features = FeatureCalls(engine, dispatcher, model, max_document_len, metrics)
        self._draining = False
        # What a Drain leads to beside refusing new generations.
        self.on_drain: Callable[[], Awaitable[None]] | None = None

    async def DescribeModel(
        self, request: pb.DescribeModelRequest, context: Context
    ) -> AsyncIterator[pb.DescribeModelResponse]:
        yield pb.DescribeModelResponse(model=self._model)
        for name, data in self._files.items():
            for start in range(0, max(1, len(data)), _CHUNK_BYTES):
                stop = start + _CHUNK_BYTES
                chunk = pb.FileChunk(name=name, data=data[start:stop], last=stop >= len(data))
                yield pb.DescribeModelResponse(file=chunk)

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self._draining:
            raise Unavailable("The verifier is draining.")
        generation = validation.decode_request(
            request,
            vocab_size=self._model.vocab_size,
            max_model_len=self._model.max_model_len,
            max_draft_tokens=self._model.max_draft_tokens,
        )
        self._fence(request.session_id, request.epoch)
        if self._generations >= self._max_calls:
            raise Overloaded(f"{self._max_calls} generations are running or queued already.")
        if not self._engine.alive:
            raise Unavailable("The engine has stopped.")
        self._metrics.prompted.inc(generation.output_start)
        seq, events = self._dispatcher.open()
        self._engine.post(Submit(seq, generation))
        numbers = MessageCounter(0)
        outcome = "cancelled"
        try:
            # Tells the client that it is no longer refused, long before a token comes.
            await context.send_initial_metadata(())
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    outcome = "failed"
                    raise (Unavailable if event.elsewhere else NotFinite)(event.reason)
                assert isinstance(event, RoundOutput | Finished), "states answer documents only"
                if isinstance(event, Finished):
                    outcome = event.reason.value
                yield _encode(numbers.take(), event)
                if isinstance(event, Finished):
                    return
        finally:
            self._dispatcher.close(seq)
            self._metrics.requests.labels(outcome).inc()
            if outcome == "cancelled":
                self._engine.post(Cancel(seq))

    async def Features(
        self, requests: AsyncIterator[pb.FeaturesRequest], context: Context
    ) -> AsyncIterator[pb.FeaturesResponse]:
        async with aclosing(self._features.serve(requests)) as answers:
            async for answer in answers:
                yield answer

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        await self.wind_up()
        if self.on_drain is not None:
            await self.on_drain()
        waiting = max(0, self._generations - self._model.max_sequences)
        return pb.DrainResponse(running=self._generations - waiting, waiting=waiting)

    async def wind_up(self) -> None:
        """Take no new calls, and no further documents; what is in flight goes on to its end."""
        self._draining = True
        self._features.drain()

    @property
    def _generations(self) -> int:
        """Generations in flight."""
        return self._dispatcher.calls - self._features.calls

    def _fence(self, session: str, epoch: int) -> None:
        """Refuse a request that a newer placement of its session has overtaken."""
        if not session:
            return
        known = self._epochs.get(session, 0)
        if epoch < known:
            raise Incompatible(f"epoch: {epoch} was overtaken by {known}.")
        self._epochs[session] = epoch
        self._epochs.move_to_end(session)
        if len(self._epochs) > _MAX_SESSIONS:
            self._epochs.popitem(last=False)


def _encode(number: int, event: RoundOutput | Finished) -> pb.GenerateResponse:
    if isinstance(event, RoundOutput):
        tokens = pb.Tokens(
            start=event.start, ids=event.tokens, drafted=event.drafted, accepted=event.accepted
        )
        if event.drafted:
            tokens.source = SOURCES[event.source]
        if event.logprobs:
            width = len(event.logprobs[0].top)
            top = [pair for item in event.logprobs for pair in item.top]
            tokens.logprobs.drawn.CopyFrom(pack_floats([item.drawn for item in event.logprobs]))
            tokens.logprobs.top_ids.extend(token for token, _ in top)
            tokens.logprobs.top.CopyFrom(
                pack_floats([value for _, value in top], (len(event.logprobs), width))
            )
        return pb.GenerateResponse(number=number, tokens=tokens)
    usage, timings = event.usage, event.timings
    finish = pb.Finish(
        reason=_REASONS[event.reason],
        usage=pb.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            accepted_draft_tokens=usage.accepted_draft_tokens,
            rejected_draft_tokens=usage.rejected_draft_tokens,
            rounds=usage.rounds,
            drafted_rounds=usage.drafted_rounds,
            proposed_at=usage.proposed_at,
            accepted_at=usage.accepted_at,
            lookup_proposed_at=usage.lookup_proposed_at,
            lookup_accepted_at=usage.lookup_accepted_at,
        ),
        timings=pb.Timings(
            queue_us=_microseconds(timings.queue),
            prefill_us=_microseconds(timings.prefill),
            target_us=_microseconds(timings.target),
            draw_us=_microseconds(timings.draw),
            drafter_us=_microseconds(timings.drafter),
            drafter_queue_us=_microseconds(timings.drafter_queue),
            wire_us=_microseconds(timings.wire),
            host_us=_microseconds(timings.host),
        ),
    )
    return pb.GenerateResponse(number=number, finish=finish)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
