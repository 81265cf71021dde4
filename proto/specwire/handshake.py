"""Whether a drafter and a target fit together, decided alike at both ends."""

from __future__ import annotations

from dataclasses import dataclass

from specwire.errors import Incompatible
from specwire.limits import MAX_ROUND_BYTES
from specwire.messages import DrafterInfo

# Metadata that names the request in the logs of every service.
REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True, slots=True)
class TargetIdentity:
    """What must agree: the weights, the vocabulary and the width of the target."""

    fingerprint: str
    vocab_size: int
    hidden_size: int


def announced(welcome: DrafterInfo) -> TargetIdentity:
    """The target that a drafter says it was made for."""
    return TargetIdentity(
        welcome.target_fingerprint, welcome.vocab_size, welcome.target_hidden_size
    )


def check(target: TargetIdentity, drafter: TargetIdentity) -> None:
    """Refuse a drafter that was made for another target.

    An empty fingerprint on the drafter's side says nothing, and is taken on trust.

    Raises:
        Incompatible: naming the field that differs and both values.
    """
    for field in ("vocab_size", "hidden_size"):
        ours, theirs = getattr(target, field), getattr(drafter, field)
        if ours != theirs:
            raise Incompatible(
                f"The drafter was made for another target: {field} is {theirs} there, {ours} here."
            )
    if drafter.fingerprint and drafter.fingerprint != target.fingerprint:
        raise Incompatible(
            "The drafter was made for another target: fingerprint "
            f"{drafter.fingerprint[:12]} there, {target.fingerprint[:12]} here."
        )


def check_room(welcome: DrafterInfo, rows: int) -> None:
    """Refuse a drafter to which not even one sequence could be sent, its features in fp32.

    Raises:
        Incompatible: a message of `rows` rows may have more bytes than either end takes.
    """
    width = len(welcome.aux_layer_ids) * welcome.target_hidden_size
    # Tokens, and an opening with all biases that it may have.
    needed = 4 * rows * width + (32 << 10)
    most = min(welcome.max_round_bytes, MAX_ROUND_BYTES)
    if needed > most:
        raise Incompatible(
            f"The drafter takes rounds of {most} bytes, one sequence's may have {needed}."
        )
