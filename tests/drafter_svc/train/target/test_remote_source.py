"""RemoteSource against verifiers whose answers are scripted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import torch

from drafter_svc.train.target.remote_source import RemoteSource
from speckernels.tensor_codec import pack
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import (
    VerifierServiceServicer,
    add_VerifierServiceServicer_to_server,
)
from tests.support.ports import free_port

HIDDEN = 4
LAYERS = (0, 2)
Answers = Iterator[pb.FeaturesResponse]
# What a verifier does in place of a rows message: gets the message, yields others.
Misdeed = Callable[["Scripted", pb.FeaturesResponse], Answers]


def states(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scripted target computes: told apart by token and position."""
    base = torch.tensor(tokens)[:, None] + torch.arange(len(tokens))[:, None] / 8
    return base + torch.arange(len(LAYERS) * HIDDEN), -base.expand(-1, HIDDEN).clone()


@dataclass
class Scripted(VerifierServiceServicer):
    """A verifier that answers documents in halves, `delay` seconds after they came."""

    fingerprint: str = "f" * 64
    max_tokens: int = 64
    delay: float = 0.0
    misdeed: Misdeed | None = None
    answered: list[int] = field(default_factory=list)
    calls: int = 0
    most_in_flight: int = 0

    def Features(  # noqa: N802
        self, requests: Iterator[pb.FeaturesRequest], context: grpc.ServicerContext
    ) -> Answers:
        self.calls += 1
        hello = next(requests).hello
        assert tuple(hello.aux_layer_ids) == LAYERS
        if hello.target_fingerprint != self.fingerprint:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "target_fingerprint: another one.")
        yield pb.FeaturesResponse(
            number=0,
            welcome=pb.FeaturesWelcome(
                target_fingerprint=self.fingerprint, dtype="float32", hidden_size=HIDDEN,
                vocab_size=100, max_tokens=self.max_tokens, window=self.max_tokens,
            ),
        )  # fmt: skip
        number, documents = 1, 0
        for request in requests:
            time.sleep(self.delay)
            documents += 1
            # Before its last rows, with which a client may leave.
            self.answered.append(request.document.id)
            for rows in self._rows(request.document):
                message = pb.FeaturesResponse(number=number, rows=rows)
                if self.misdeed is not None:
                    yield from self.misdeed(self, message)
                else:
                    yield message
                number += 1
        yield pb.FeaturesResponse(number=number, end=pb.FeaturesEnd(documents=documents))

    def DescribeModel(self, request: Any, context: Any) -> Any: ...  # noqa: N802

    def Generate(self, request: Any, context: Any) -> Any: ...  # noqa: N802

    def Drain(self, request: Any, context: Any) -> Any: ...  # noqa: N802

    def _rows(self, document: pb.Document) -> Iterator[pb.FeatureRows]:
        features, final = states(list(document.tokens))
        half = (len(final) + 1) // 2
        for part in (slice(0, half), slice(half, None)):
            if len(final[part]):
                yield pb.FeatureRows(
                    document=document.id, start=part.start,
                    features=pack(features[part]), final=pack(final[part]),
                )  # fmt: skip


@contextmanager
def serving(verifier: Scripted, port: int | None = None) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    add_VerifierServiceServicer_to_server(verifier, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port or 0}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait()


@contextmanager
def source_over(*verifiers: Scripted) -> Iterator[RemoteSource]:
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(verifier)) for verifier in verifiers]
        source = RemoteSource(addresses, "f" * 64)
        stack.callback(source.close)
        yield source


def check(source: RemoteSource, documents: list[list[int]]) -> None:
    captured = source.capture(documents, LAYERS)
    assert len(captured) == len(documents)
    for got, document in zip(captured, documents, strict=True):
        features, final = states(document)
        assert got.features.dtype == got.final.dtype == torch.bfloat16
        assert torch.equal(got.features, features.to(torch.bfloat16))
        assert torch.equal(got.final, final.to(torch.bfloat16))


DOCUMENTS = [[(7 * d + i) % 97 for i in range(1 + 5 * d % 60)] for d in range(40)]


def test_every_document_comes_back_in_its_place() -> None:
    verifier = Scripted()
    with source_over(verifier) as source:
        check(source, DOCUMENTS)
        check(source, DOCUMENTS[:3])
        assert source.capture([], LAYERS) == []
    assert sorted(verifier.answered) == sorted([*range(40), 0, 1, 2])


def test_captures_may_run_at_once() -> None:
    with source_over(Scripted(delay=0.002)) as source, futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check, source, DOCUMENTS[i:]) for i in range(4)]:
            done.result()


def test_documents_are_spread_and_the_faster_verifier_gets_more() -> None:
    fast, slow = Scripted(delay=0.001), Scripted(delay=0.05)
    with source_over(fast, slow) as source:
        check(source, [[5] * 32 for _ in range(60)])
    assert len(fast.answered) > 2 * len(slow.answered) > 0


@pytest.mark.parametrize("kind", ["gap", "missing rows", "extra rows", "wrong width", "abort"])
def test_what_was_lost_on_the_way_is_asked_for_again(kind: str) -> None:
    def misdeed(verifier: Scripted, message: pb.FeaturesResponse) -> Answers:
        if verifier.calls > 1 or message.number != 9:
            yield message
        elif kind == "gap":
            message.number += 1
            yield message
        elif kind == "extra rows":
            yield message
            message.number += 1
            yield message
        elif kind == "wrong width":
            message.rows.final.CopyFrom(pack(torch.zeros(message.rows.final.shape[0], 3)))
            yield message
        elif kind == "abort":
            raise RuntimeError("scripted")

    verifier = Scripted(misdeed=misdeed)
    with source_over(verifier) as source:
        check(source, DOCUMENTS)
    assert verifier.calls == 2


def test_a_verifier_that_dies_in_the_middle_is_waited_for() -> None:
    port = free_port()
    first, second = Scripted(delay=0.005), Scripted()
    source = RemoteSource([f"127.0.0.1:{port}"], "f" * 64)
    with futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(check, source, DOCUMENTS)  # before any verifier is there
        time.sleep(0.2)
        with serving(first, port):
            while len(first.answered) < 6:
                assert not done.done()
                time.sleep(0.002)
        time.sleep(0.1)
        assert not done.done()
        with serving(second, port):
            done.result(20)
    source.close()
    # What had been answered was not asked for again.
    assert len(second.answered) <= len(DOCUMENTS) - 4


def test_the_other_verifier_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    here = Scripted()
    with serving(here) as address:
        source = RemoteSource([f"127.0.0.1:{free_port()}", address], "f" * 64)
        check(source, DOCUMENTS)
        source.close()
    assert len(here.answered) == len(DOCUMENTS)


def test_another_target_is_refused() -> None:
    with (
        source_over(Scripted(fingerprint="0" * 64)) as source,
        pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+: target_fingerprint: another one"),
    ):
        source.capture(DOCUMENTS, LAYERS)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([5] * 65, "document 1: 65 tokens, the verifier takes from 1 to 64"),
        ([], "document 1: 0 tokens"),
        ([5, 100], "document 1: token ids must be below the vocabulary size 100"),
        ([5, -1], "document 1: token ids must be below"),
    ],
)
def test_a_document_over_the_limits_is_refused_by_name(document: list[int], sentence: str) -> None:
    verifier = Scripted()
    with source_over(verifier) as source:
        with pytest.raises(ValueError, match=sentence):
            source.capture([[5], document], LAYERS)
        check(source, DOCUMENTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["features", "final"])
def test_states_that_are_not_finite_name_their_document(bad: float, part: str) -> None:
    def misdeed(verifier: Scripted, message: pb.FeaturesResponse) -> Answers:
        if message.rows.document == 3:
            rows = torch.full(tuple(getattr(message.rows, part).shape), bad)
            getattr(message.rows, part).CopyFrom(pack(rows))
        yield message

    with (
        source_over(Scripted(misdeed=misdeed)) as source,
        pytest.raises(ValueError, match="document 3: the target's states are not finite"),
    ):
        source.capture(DOCUMENTS, LAYERS)


def test_close_ends_a_capture_that_waits() -> None:
    source = RemoteSource([f"127.0.0.1:{free_port()}"], "f" * 64)
    threading.Timer(0.2, source.close).start()
    with pytest.raises(RuntimeError, match="closed"):
        source.capture(DOCUMENTS, LAYERS)
    with pytest.raises(RuntimeError, match="closed"):
        source.capture(DOCUMENTS, LAYERS)


def test_no_address_is_an_error() -> None:
    no_addresses: Any = []
    with pytest.raises(ValueError, match="at least one"):
        RemoteSource(no_addresses, "")
