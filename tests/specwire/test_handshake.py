"""Which drafters fit which targets."""

import dataclasses

import pytest

from specwire import handshake
from specwire.errors import Incompatible
from specwire.handshake import TargetIdentity
from specwire.messages import DrafterInfo

TARGET = TargetIdentity(fingerprint="a" * 64, vocab_size=49152, hidden_size=576)


def test_a_drafter_for_this_target_is_welcome() -> None:
    handshake.check(TARGET, dataclasses.replace(TARGET))


def test_a_drafter_that_names_no_target_is_taken_on_trust() -> None:
    handshake.check(TARGET, dataclasses.replace(TARGET, fingerprint=""))


@pytest.mark.parametrize(
    ("field", "theirs", "sentence"),
    [
        ("vocab_size", 32000, "vocab_size is 32000 there, 49152 here."),
        ("hidden_size", 960, "hidden_size is 960 there, 576 here."),
        ("fingerprint", "b" * 64, "fingerprint bbbbbbbbbbbb there, aaaaaaaaaaaa here."),
    ],
)
def test_a_mismatch_is_one_sentence_with_both_values(
    field: str, theirs: object, sentence: str
) -> None:
    drafter = dataclasses.replace(TARGET, **{field: theirs})  # type: ignore[arg-type]
    with pytest.raises(Incompatible) as error:
        handshake.check(TARGET, drafter)
    assert str(error.value) == f"The drafter was made for another target: {sentence}"


def test_trust_does_not_cover_the_shape() -> None:
    with pytest.raises(Incompatible, match="hidden_size"):
        handshake.check(TARGET, TargetIdentity("", 49152, 577))


@pytest.mark.parametrize(
    ("mib", "hidden", "fits"), [(64, 16384, True), (4, 8192, True), (4, 16384, False)]
)
def test_a_drafter_must_have_room_for_one_sequence(mib: int, hidden: int, fits: bool) -> None:
    welcome = DrafterInfo("c", "", (1, 2, 3), hidden, 97, 97, 100, 8, max_round_bytes=mib << 20)
    if fits:
        handshake.check_room(welcome, 32)
        return
    with pytest.raises(
        Incompatible, match="takes rounds of 4194304 bytes, one sequence's may have"
    ):
        handshake.check_room(welcome, 32)
