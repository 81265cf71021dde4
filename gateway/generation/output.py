"""One choice: frames of the verifier in, pieces of text out. No clock, no grpc."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gateway.generation.usage import GenerationUsage
from gateway.text.detokenizer import Detokenizer
from gateway.text.stop_strings import StopFinder
from specwire.errors import DataLoss, InvalidRequest
from specwire.tensor import unpack_floats
from specwire.v1 import verifier_pb2

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token and the likeliest ones in its place, best first.

    `begin` counts the whole characters of the text before the token. `end` counts all characters
    with it, unfinished ones as U+FFFD.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    begin: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """What one frame adds to the output."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def empty(self) -> bool:
        """Whether it only tells that the request is being worked on."""
        return not (self.text or self.tokens or self.finish_reason)


class ChoiceOutput:
    """The output of one choice, put together from one or more streams of frames."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        min_tokens: int,
        end_ids: Collection[int],
        detokenizer: Detokenizer,
        stops: StopFinder,
    ) -> None:
        self.prompt = prompt
        self.output: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._end_ids = end_ids
        self._detokenizer = detokenizer
        self._stops = stops
        self._next_number = 0
        # Characters of the text, unfinished ones left out.
        self._length = 0
        # Of streams that are over, and of the one that runs.
        self._over = GenerationUsage()
        self._running = GenerationUsage()

    @property
    def spent(self) -> GenerationUsage:
        total = GenerationUsage()
        total.add(self._over)
        total.add(self._running)
        return total

    @property
    def complete(self) -> bool:
        """Whether nothing more can come, although no Finish frame has been seen."""
        return len(self.output) >= self._max_tokens or self._ended

    @property
    def _ended(self) -> bool:
        return bool(self.output) and self.output[-1] in self._end_ids

    def begin(self) -> None:
        """Expect a new stream, which continues behind `output`."""
        self._over.add(self._running)
        self._running = GenerationUsage()
        self._next_number = 0

    def receive(self, frame: verifier_pb2.GenerateResponse | None) -> OutputDelta:
        """Take the next frame of the stream.

        Tokens that came already are dropped. After a piece with a `finish_reason` no further
        frame is wanted.

        Raises:
            DataLoss: a frame or a token is missing, or the frame cannot be read.
        """
        if frame is None:
            raise DataLoss("A frame could not be decoded.")
        if frame.number != self._next_number:
            raise DataLoss(f"Frame {self._next_number} is missing.")
        self._next_number += 1
        match frame.WhichOneof("frame"):
            case "tokens":
                return self._tokens(frame.tokens)
            case "finish":
                return self._finish(frame.finish)
            case _:
                raise DataLoss("A frame is empty.")

    def conclude(self) -> OutputDelta:
        """End a complete output whose Finish frame was lost."""
        return self._end("stop" if self._ended else "length")

    def _tokens(self, tokens: verifier_pb2.Tokens) -> OutputDelta:
        known = len(self.prompt) + len(self.output) - tokens.start
        if known < 0:
            raise DataLoss(f"{-known} tokens are missing.")
        ids = tokens.ids[known:]
        given = _logprobs(tokens)[known:] if tokens.HasField("logprobs") else []
        logprobs: list[TokenLogprob] = []
        self._running.add(GenerationUsage.of_round(tokens))
        text = ""
        taken = 0
        for token in ids:
            if self.complete:
                break
            self.output.append(token)
            if self._ended:
                break
            new = self._detokenizer.push(token)
            if given:
                begin, end = self._length, self._length + len(new) + self._detokenizer.held
                logprobs.append(replace(given[taken], begin=begin, end=end))
            taken += 1
            self._length += len(new)
            text += self._show(new)
            if self._stops.found:
                self.finish_reason = "stop"
                break
        return OutputDelta(text, tuple(ids[:taken]), tuple(logprobs), self.finish_reason)

    def _show(self, text: str) -> str:
        if len(self.output) <= self._min_tokens:
            return text
        return self._stops.push(text)

    def _finish(self, finish: verifier_pb2.Finish) -> OutputDelta:
        # The verifier's own count, instead of what was seen round by round.
        self._running = GenerationUsage.of_stream(finish)
        stopped = finish.reason == verifier_pb2.FINISH_REASON_STOP
        return self._end("stop" if stopped else "length")

    def _end(self, reason: FinishReason) -> OutputDelta:
        text = self._show(self._detokenizer.flush())
        if not self._stops.found:
            text += self._stops.flush()
        self.finish_reason = "stop" if self._stops.found else reason
        return OutputDelta(text, finish_reason=self.finish_reason)


def _logprobs(tokens: verifier_pb2.Tokens) -> list[TokenLogprob]:
    """Read the log-probabilities of a round.

    Raises:
        DataLoss: they do not fit the tokens.
    """
    count = len(tokens.ids)
    ids = tokens.logprobs.top_ids
    width = len(ids) // count if count else 0
    try:
        drawn = unpack_floats(tokens.logprobs.drawn, "drawn").reshape(count)
        top = unpack_floats(tokens.logprobs.top, "top").reshape(count, width) if width else None
    except (InvalidRequest, ValueError) as error:
        raise DataLoss("Log-probabilities do not fit their tokens.") from error
    return [
        TokenLogprob(
            token,
            float(drawn[i]),
            ()
            if top is None
            else tuple(zip(ids[i * width : (i + 1) * width], map(float, top[i]), strict=True)),
        )
        for i, token in enumerate(tokens.ids)
    ]
