"""Errors of the wire, and the gRPC status that each one becomes."""

from __future__ import annotations

import grpc


class WireError(Exception):
    """A request that cannot be served. The message is one sentence for the caller."""

    code = grpc.StatusCode.INTERNAL


class InvalidRequest(WireError):
    """A field has a value outside its limits."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFinite(WireError):
    """The request gives scores that are no finite numbers, and would wherever it is computed."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Incompatible(WireError):
    """The two ends do not fit together: another target, vocabulary, width or epoch."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(WireError):
    """A bounded queue is full; a later try may succeed."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(WireError):
    """The service is draining, or lost what the request needs."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLoss(WireError):
    """A frame is missing or could not be decoded."""

    code = grpc.StatusCode.DATA_LOSS
