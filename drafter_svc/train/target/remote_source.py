"""States of documents from one or many verifiers, over VerifierService.Features."""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import torch

from drafter_svc.train.target.capture_job import CaptureJob, Stream
from drafter_svc.train.target.feature_source import Captured
from drafter_svc.train.target.grpc_retry import (
    CHANNEL_OPTIONS,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    REFUSALS,
)
from speckernels.tensor_codec import unpack
from specwire.errors import DataLoss, WireError
from specwire.message_counter import MessageCounter
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.tensor_pb2 import Tensor
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Verifier:
    address: str
    channel: grpc.Channel
    stub: Any


class RemoteSource:
    """A FeatureSource at the other end of gRPC. `capture` blocks, and may run on several threads.

    A verifier that is gone is tried again until it is back, after at most a second each time;
    what it had not answered is sent again, to whichever verifier has room.
    """

    def __init__(self, addresses: Sequence[str], fingerprint: str) -> None:
        """`addresses` are HOST:PORT; `fingerprint` is that of the target that is expected.

        Raises:
            ValueError: no address.
        """
        if not addresses:
            raise ValueError("verifiers: at least one HOST:PORT is needed")
        self._fingerprint = fingerprint
        self._verifiers = []
        for address in addresses:
            channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
            self._verifiers.append(_Verifier(address, channel, VerifierServiceStub(channel)))
        self._lock = threading.Lock()
        self._jobs: set[CaptureJob] = set()
        self._closed = False

    def capture(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...]
    ) -> list[Captured]:
        """States of each document, in order.

        Raises:
            ValueError: a document over the limit, a target or layers that are not served, or
                states that are not finite; the sentence names which.
            RuntimeError: the source was closed.
        """
        if not documents:
            return []
        job = CaptureJob(documents, aux_layers, len(self._verifiers))
        with self._lock:
            if self._closed:
                raise RuntimeError("the source of features is closed")
            self._jobs.add(job)
        for verifier in self._verifiers:
            name = f"features-{verifier.address}"
            threading.Thread(target=_carry, args=(verifier, job, self._fingerprint), name=name,
                             daemon=True).start()  # fmt: skip
        captured: list[Captured | None] = [None] * len(documents)
        try:
            for _ in documents:
                index, rows = job.next_complete()
                features = _join([part.features for part in rows], index)
                captured[index] = Captured(features, _join([part.final for part in rows], index))
        except Exception as error:
            job.fail(error)
            raise
        finally:
            job.leave()
            with self._lock:
                self._jobs.discard(job)
        return [states for states in captured if states is not None]

    def close(self) -> None:
        """Drop the connections; a capture that runs raises RuntimeError."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs)
        for job in jobs:
            job.fail(RuntimeError("the source of features is closed"))
            job.leave()
        for verifier in self._verifiers:
            verifier.channel.close()


def _join(parts: Sequence[Tensor], index: int) -> torch.Tensor:
    """Rows of one document in bf16.

    Raises:
        ValueError: some are not finite.
    """
    rows = torch.cat([unpack(part, "rows").to(torch.bfloat16) for part in parts])
    if not torch.isfinite(rows).all():
        raise ValueError(f"document {index}: the target's states are not finite (NaN or infinite)")
    return rows


def _carry(verifier: _Verifier, job: CaptureJob, fingerprint: str) -> None:
    """Carry documents to one verifier until the job is over."""
    pause, said = FIRST_PAUSE, ""
    while not job.over:
        stream = job.open()
        try:
            _run(verifier, job, stream, fingerprint)
            return
        except grpc.RpcError as error:
            reason = error.details() or error.code().name
            if error.code() in REFUSALS:
                job.fail(ValueError(f"{verifier.address}: {reason}"))
        except WireError as error:
            reason = str(error)
        except Exception as error:
            job.fail(error)
            return
        finally:
            job.close(stream)
        if stream.answered:
            pause = FIRST_PAUSE
        if reason != said and not job.over:
            logger.warning("verifier %s: %s; it is tried again", verifier.address, reason)
            said = reason
        job.pause(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _run(verifier: _Verifier, job: CaptureJob, stream: Stream, fingerprint: str) -> None:
    """Run one call to its end."""
    call = verifier.stub.Features(_requests(job, stream, fingerprint))
    stream.cancel = call.cancel
    numbers = MessageCounter(0)
    try:
        for answer in call:
            numbers.expect(answer.number)
            match answer.WhichOneof("frame"):
                case "welcome" if stream.welcome is None:
                    job.welcome(stream, answer.welcome)
                case "rows":
                    job.receive(stream, answer.rows)
                case "end":
                    if stream.held:
                        raise DataLoss(f"{len(stream.held)} documents were not answered.")
                    return
                case _:
                    raise DataLoss("a frame is of no known kind.")
        raise DataLoss("the stream ended without its last frame.")
    finally:
        call.cancel()


def _requests(job: CaptureJob, stream: Stream, fingerprint: str) -> Iterator[pb.FeaturesRequest]:
    hello = pb.FeaturesHello(aux_layer_ids=job.aux_layers, target_fingerprint=fingerprint)
    yield pb.FeaturesRequest(hello=hello)
    numbers = MessageCounter(1)
    while (index := job.take(stream)) is not None:
        document = pb.Document(number=numbers.take(), id=index, tokens=job.documents[index])
        yield pb.FeaturesRequest(document=document)
