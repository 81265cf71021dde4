"""The Features call over gRPC: documents in, their states out, a bounded window between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from specwire.errors import Incompatible, InvalidRequest, Overloaded, Unavailable
from specwire.message_counter import MessageCounter
from specwire.v1 import verifier_pb2 as pb
from verifier_svc.engine.dispatcher import Dispatcher
from verifier_svc.engine.engine import Cancel, Engine
from verifier_svc.metrics import Metrics
from verifier_svc.request.documents import EndOfRequests, FeatureRequest, FeatureRows
from verifier_svc.request.types import Event, Failed

MAX_CALLS = 16
# Tokens of a call in flight, where no document needs more.
_WINDOW = 4096


class _Window:
    """Tokens in flight of one call, bounded; one reader waits for room."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._freed = asyncio.Event()

    async def take(self, tokens: int) -> None:
        while tokens > self._free:
            self._freed.clear()
            await self._freed.wait()
        self._free -= tokens

    def give(self, tokens: int) -> None:
        self._free += tokens
        self._freed.set()


@dataclass(eq=False)
class _Call:
    """One client: what it asked for and has not been sent."""

    seq: int
    aux_layers: tuple[int, ...]
    events: asyncio.Queue[Event]
    window: _Window
    # Rows still to be sent, by document.
    open: dict[int, int] = field(default_factory=dict)
    documents: int = 0
    tokens: int = 0
    reader: asyncio.Task[None] | None = None


class FeatureCalls:
    """All Features calls of the service."""

    def __init__(
        self,
        engine: Engine,
        dispatcher: Dispatcher,
        model: pb.Model,
        max_tokens: int,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._model = model
        self._max_tokens = max_tokens
        self._window = max(_WINDOW, max_tokens)
        self._metrics = metrics
        self._calls: set[_Call] = set()
        self._draining = False

    @property
    def calls(self) -> int:
        """Calls in flight."""
        return len(self._calls)

    def drain(self) -> None:
        """Read no further documents: calls end once what they are owed is sent."""
        self._draining = True
        for call in self._calls:
            if call.reader is not None:
                call.reader.cancel()

    async def serve(
        self, requests: AsyncIterator[pb.FeaturesRequest]
    ) -> AsyncGenerator[pb.FeaturesResponse, None]:
        """Answer one call.

        Raises:
            WireError: it is refused, or cannot be answered to its end.
        """
        aux_layers = self._check(await anext(requests, None))
        seq, events = self._dispatcher.open()
        call = _Call(seq, aux_layers, events, _Window(self._window))
        self._calls.add(call)
        self._metrics.feature_calls.set(len(self._calls))
        numbers = MessageCounter(0)
        try:
            yield pb.FeaturesResponse(number=numbers.take(), welcome=self._welcome())
            call.reader = asyncio.create_task(self._read(call, requests))
            call.reader.add_done_callback(lambda _: call.events.put_nowait(EndOfRequests()))
            if self._draining:
                call.reader.cancel()
            while (rows := await self._next(call)) is not None:
                yield pb.FeaturesResponse(number=numbers.take(), rows=_encode(rows))
                # gRPC has taken the message: the client keeps up.
                call.window.give(rows.count)
                self._metrics.featured.inc(rows.count)
            end = pb.FeaturesEnd(documents=call.documents, tokens=call.tokens)
            yield pb.FeaturesResponse(number=numbers.take(), end=end)
        finally:
            if call.reader is not None:
                call.reader.cancel()
            self._calls.discard(call)
            self._dispatcher.close(seq)
            self._engine.post(Cancel(seq))
            self._metrics.feature_calls.set(len(self._calls))

    async def _next(self, call: _Call) -> FeatureRows | None:
        """The next rows to send, or None after the last document's."""
        assert call.reader is not None
        while call.open or not call.reader.done():
            event = await call.events.get()
            if isinstance(event, Failed):
                raise Unavailable(event.reason)
            if isinstance(event, FeatureRows):
                call.open[event.document] -= event.count
                if not call.open[event.document]:
                    del call.open[event.document]
                return event
            if not call.reader.cancelled():
                # What stopped the reading ends the call.
                call.reader.result()
        if call.reader.cancelled():
            raise Unavailable("The verifier is draining.")
        call.reader.result()
        return None

    async def _read(self, call: _Call, requests: AsyncIterator[pb.FeaturesRequest]) -> None:
        numbers = MessageCounter(1)
        async for request in requests:
            if request.WhichOneof("message") != "document":
                raise InvalidRequest("features: only documents may follow the hello.")
            document = request.document
            numbers.expect(document.number)
            tokens = self._tokens(call, document)
            await call.window.take(len(tokens))
            if not self._engine.alive:
                raise Unavailable("The engine has stopped.")
            call.open[document.id] = len(tokens)
            call.documents += 1
            call.tokens += len(tokens)
            self._engine.post(FeatureRequest(call.seq, document.id, tokens, call.aux_layers))

    def _tokens(self, call: _Call, document: pb.Document) -> tuple[int, ...]:
        tokens, name = tuple(document.tokens), f"document {document.id}"
        if not tokens:
            raise InvalidRequest(f"{name}: tokens: at least one is needed.")
        if len(tokens) > self._max_tokens:
            raise InvalidRequest(
                f"{name}: tokens: at most {self._max_tokens}, {len(tokens)} were given."
            )
        vocabulary = self._model.vocab_size
        if max(tokens) >= vocabulary:
            raise InvalidRequest(
                f"{name}: tokens: ids must be below the vocabulary size {vocabulary}, "
                f"{max(tokens)} was given."
            )
        if document.id in call.open:
            raise InvalidRequest(f"{name}: id: a document of that id is in flight.")
        return tokens

    def _check(self, first: pb.FeaturesRequest | None) -> tuple[int, ...]:
        """The layers that a call asks for, if it can be served."""
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("hello: must be the first message of the stream.")
        layers, theirs = tuple(first.hello.aux_layer_ids), first.hello.target_fingerprint
        if not layers:
            raise InvalidRequest("aux_layer_ids: at least one layer is needed.")
        last = self._model.num_layers  # stands for what leaves the last layer
        for layer in layers:
            if layer > last:
                raise InvalidRequest(
                    f"aux_layer_ids: {layer} is not a state of a target of {last} layers."
                )
        if len(layers) > last + 1:
            raise InvalidRequest(f"aux_layer_ids: at most {last + 1} states.")
        if theirs and theirs != self._model.fingerprint:
            raise Incompatible(
                f"target_fingerprint: {theirs[:12]} was asked for, "
                f"{self._model.fingerprint[:12]} is served."
            )
        if not self._max_tokens:
            raise Incompatible("The verifier serves no features: its --max-document-len is 0.")
        if self._draining:
            raise Unavailable("The verifier is draining.")
        if len(self._calls) >= MAX_CALLS:
            raise Overloaded(f"{MAX_CALLS} Features calls are open already.")
        if not self._engine.alive:
            raise Unavailable("The engine has stopped.")
        return layers

    def _welcome(self) -> pb.FeaturesWelcome:
        return pb.FeaturesWelcome(
            target_fingerprint=self._model.fingerprint,
            dtype=self._model.dtype,
            hidden_size=self._model.hidden_size,
            vocab_size=self._model.vocab_size,
            max_tokens=self._max_tokens,
            window=self._window,
        )


def _encode(rows: FeatureRows) -> pb.FeatureRows:
    return pb.FeatureRows(
        document=rows.document, start=rows.start, features=rows.features, final=rows.final
    )
