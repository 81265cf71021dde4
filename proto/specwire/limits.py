"""Limits of what a request may ask for, and of messages. All services enforce the same ones.

With a penalty, a bias and a temperature inside them, fp32 scores stay finite for every logit of
up to `MAX_LOGIT`, whichever way they are combined.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above`, which leaves out `low`."""

    low: float
    high: float
    above: bool = False

    def admits(self, value: float) -> bool:
        """Whether an fp32 number, such as the wire carries, is inside; NaN is not."""
        low, high = as_fp32(self.low), as_fp32(self.high)
        return (low < value if self.above else low <= value) and value <= high

    def __str__(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.low:g} and at most {self.high:g}"


TEMPERATURE = Range(0, 2)
TOP_P = Range(0, 1, above=True)
MIN_P = Range(0, 1)
REPETITION_PENALTY = Range(0.01, 100)
PRESENCE_PENALTY = Range(-2, 2)
FREQUENCY_PENALTY = Range(-2, 2)
LOGIT_BIAS = Range(-100, 100)

#: Bytes of a message: of any, of what should not make others wait for long, and of a round between
#: a verifier and a drafter. 64 sequences send an 8B's features of their last prompt rows in 48 MiB.
MAX_MESSAGE_BYTES = 4 << 20
MAX_SHORT_BYTES = 1 << 20
MAX_ROUND_BYTES = 64 << 20

#: Of a request.
MAX_BIASES = 1024
MAX_STOP_TOKENS = 64
#: Of each token.
MAX_TOP_LOGPROBS = 20
#: Lower temperatures draw the likeliest token, as 0 does: logits divided by them could overflow.
LEAST_TEMPERATURE = 1e-5
#: The least number that fp32 holds in full precision. Less may be 0 on the wire.
LEAST_FP32 = 2.0**-126
#: Largest absolute value that a target may be expected to give.
MAX_LOGIT = 1e30


def message_limits(most: int) -> list[tuple[str, int]]:
    """The options by which either end of gRPC takes and sends messages of so many bytes."""
    return [(f"grpc.max_{way}_message_length", most) for way in ("receive", "send")]


def as_fp32(value: float) -> float:
    """Return the fp32 number next to `value`, as the wire carries it."""
    number: float = struct.unpack("f", struct.pack("f", value))[0]
    return number
