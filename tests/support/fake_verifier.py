"""A scripted verifier: deterministic tokens, and every way to go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from specwire.tensor import pack_floats
from specwire.v1 import verifier_pb2 as pb

Draw = Callable[[pb.GenerateRequest, int], int]


@dataclass
class Fault:
    """What happens to one Generate call, after `after` rounds of it."""

    after: int = 0
    code: grpc.StatusCode | None = None
    details: str = "as scripted"
    # cut: the stream ends without Finish. garbage, skip_number, skip_token, repeat_tokens,
    # empty: a frame of that kind. hang: nothing more comes.
    kind: str = "abort"


@dataclass
class Script:
    """How a fake verifier behaves."""

    # The token at an index of the sequence, whatever came before.
    draw: Draw
    round_size: int = 3
    delay: float = 0.0
    faults: list[Fault] = field(default_factory=list)


class CutOffError(Exception):
    """Ends a call in the middle."""


def usage_of(request: pb.GenerateRequest, rounds: Sequence[int], generated: int) -> pb.Usage:
    """Every round has one draft token more than it accepts."""
    longest = max(rounds, default=0)
    return pb.Usage(
        prompt_tokens=request.output_start,
        completion_tokens=generated,
        cached_prompt_tokens=request.output_start // 2,
        accepted_draft_tokens=sum(n - 1 for n in rounds),
        rejected_draft_tokens=len(rounds),
        rounds=len(rounds),
        drafted_rounds=len(rounds),
        proposed_at=[sum(n > i for n in rounds) for i in range(longest)],
        accepted_at=[sum(n - 1 > i for n in rounds) for i in range(longest)],
        # The first round's draft was by lookup.
        lookup_proposed_at=[1] * rounds[0] if rounds else [],
        lookup_accepted_at=[1] * (rounds[0] - 1) + [0] if rounds else [],
    )


class FakeVerifier:
    """Serves `model` and `files`; remembers every request that it got."""

    def __init__(self, model: pb.Model, files: Mapping[str, bytes], script: Script) -> None:
        self.model = model
        self.files = dict(files)
        self.script = script
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.cancelled = 0
        self.running = 0
        self.address = ""
        self.health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        handlers: dict[str, Any] = {
            "DescribeModel": grpc.unary_stream_rpc_method_handler(
                self._describe,
                pb.DescribeModelRequest.FromString,
                pb.DescribeModelResponse.SerializeToString,
            ),
            # Bytes pass as they are, so that a frame can be garbage.
            "Generate": grpc.unary_stream_rpc_method_handler(
                self._generate, pb.GenerateRequest.FromString, _to_bytes
            ),
        }
        service = grpc.method_handlers_generic_handler("specwire.v1.VerifierService", handlers)
        self._server.add_generic_rpc_handlers((service,))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace: float | None = None) -> None:
        """Without grace every stream breaks at once, as in a crash."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None

    async def _describe(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.DescribeModelResponse(model=self.model)
        for name, data in self.files.items():
            chunks = [data[at : at + 65_536] for at in range(0, len(data), 65_536)] or [b""]
            for i, chunk in enumerate(chunks):
                piece = pb.FileChunk(name=name, data=chunk, last=i == len(chunks) - 1)
                yield pb.DescribeModelResponse(file=piece)

    async def _generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse | bytes]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        fault = self.script.faults.pop(0) if self.script.faults else None
        self.running += 1
        try:
            async for frame in self._frames(request, context, fault):
                yield frame
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        except CutOffError:
            return
        finally:
            self.running -= 1

    async def _frames(
        self, request: pb.GenerateRequest, context: Any, fault: Fault | None
    ) -> AsyncIterator[pb.GenerateResponse | bytes]:
        sampling = request.sampling
        ends = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends |= set(self.model.eos_token_ids)
        if fault is None or fault.after or fault.code is None:
            await context.send_initial_metadata(())
        at = len(request.tokens)
        limit = request.output_start + sampling.max_tokens
        number = 0
        rounds: list[int] = []
        reason = pb.FINISH_REASON_LENGTH
        while at < limit:
            if fault is not None and len(rounds) == fault.after:
                async for frame in self._fail(fault, context, number, at):
                    yield frame
                    number += 1
            if self.script.delay:
                await asyncio.sleep(self.script.delay)
            ids: list[int] = []
            while len(ids) < self.script.round_size and at + len(ids) < limit:
                ids.append(self.script.draw(request, at + len(ids)))
                if ids[-1] in ends:
                    break
            yield pb.GenerateResponse(number=number, tokens=self._tokens(at, ids, sampling))
            number += 1
            rounds.append(len(ids))
            at += len(ids)
            if ids[-1] in ends:
                reason = pb.FINISH_REASON_STOP
                break
        if fault is not None and len(rounds) <= fault.after:
            async for frame in self._fail(fault, context, number, at):
                yield frame
        finish = pb.Finish(
            reason=reason,
            usage=usage_of(request, rounds, at - request.output_start),
            timings=pb.Timings(prefill_us=1000, target_us=2000, wire_us=300),
        )
        yield pb.GenerateResponse(number=number, finish=finish)

    async def _fail(
        self, fault: Fault, context: Any, number: int, at: int
    ) -> AsyncIterator[pb.GenerateResponse | bytes]:
        token = pb.Tokens(start=at, ids=[0])
        match fault.kind:
            case "abort":
                assert fault.code is not None
                await context.abort(fault.code, fault.details)
            case "cut":
                raise CutOffError
            case "hang":
                await asyncio.sleep(3600)
            case "garbage":
                yield b"\xff\xff\xff"
            case "empty":
                yield pb.GenerateResponse(number=number)
            case "skip_number":
                yield pb.GenerateResponse(number=number + 1, tokens=token)
            case "skip_token":
                token.start += 1
                yield pb.GenerateResponse(number=number, tokens=token)
            case "repeat_tokens":
                repeated = pb.Tokens(start=at - 2, ids=[7, 7])
                yield pb.GenerateResponse(number=number, tokens=repeated)
            case _:
                raise AssertionError(fault.kind)

    def _tokens(self, start: int, ids: Sequence[int], sampling: pb.Sampling) -> pb.Tokens:
        tokens = pb.Tokens(start=start, ids=ids, drafted=len(ids), accepted=len(ids) - 1)
        if sampling.HasField("top_logprobs"):
            top = sampling.top_logprobs
            tokens.logprobs.drawn.CopyFrom(pack_floats([-0.25] * len(ids)))
            if top:
                flat = [(i + t) % self.model.vocab_size for i in ids for t in range(top)]
                tokens.logprobs.top_ids.extend(flat)
                values = [-0.25 - t for _ in ids for t in range(top)]
                tokens.logprobs.top.CopyFrom(pack_floats(values, (len(ids), top)))
        return tokens


def _to_bytes(frame: pb.GenerateResponse | bytes) -> bytes:
    return frame if isinstance(frame, bytes) else frame.SerializeToString()
