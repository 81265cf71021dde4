"""The Tensor message and its checks, without torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from specwire import tensor
from specwire.errors import InvalidRequest
from specwire.v1 import tensor_pb2 as pb

floats32 = stnp.arrays(
    np.float32, stnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
)


@given(floats32)
def test_floats_come_back_bit_for_bit(array: np.ndarray) -> None:
    wire = pb.Tensor.FromString(tensor.pack_floats(array).SerializeToString())
    back = tensor.unpack_floats(wire, "x")
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_lists_are_packed_into_the_given_shape() -> None:
    message = tensor.pack_floats([1.0, 2.0, 3.0, 4.0], (2, 2))
    assert tensor.unpack_floats(message, "x").tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_values_travel_little_endian() -> None:
    assert tensor.pack_floats([1.0]).data == b"\x00\x00\x80\x3f"


@given(
    st.sampled_from(sorted(tensor.ITEM_SIZE)),
    st.lists(st.integers(0, 6), max_size=4),
    st.integers(-3, 3).filter(bool),
)
def test_a_byte_count_that_does_not_match_is_refused(
    dtype: pb.DType.ValueType, shape: list[int], off: int
) -> None:
    size = int(np.prod(shape)) * tensor.ITEM_SIZE[dtype]
    fitting = pb.Tensor(dtype=dtype, shape=shape, data=bytes(size))
    assert tensor.check(fitting, "features") == tuple(shape)
    wrong = pb.Tensor(dtype=dtype, shape=shape, data=bytes(size + (off if size >= 3 else abs(off))))
    with pytest.raises(InvalidRequest, match=r"^features: shape .* takes \d+ bytes, \d+ came\.$"):
        tensor.check(wrong, "features")


@pytest.mark.parametrize("dtype", [0, 4, 99])
def test_an_unknown_dtype_is_refused(dtype: int) -> None:
    message = pb.Tensor(shape=[0])
    message.dtype = dtype  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match=f"^features: unknown dtype {dtype}"):
        tensor.check(message, "features")


@pytest.mark.parametrize(
    "shape",
    [
        [1 << 40],
        [1 << 20, 1 << 20],
        [2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1],
        [0, 2**64 - 1],  # no elements, yet a dimension that no array can have
        [2**63, 0],
    ],
)
def test_a_huge_shape_is_refused_by_its_numbers_alone(shape: list[int]) -> None:
    message = pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=shape)
    with pytest.raises(InvalidRequest, match=r"^features: .*elements"):
        tensor.unpack_floats(message, "features")


def test_too_many_dimensions_are_refused() -> None:
    message = pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[1] * 5, data=bytes(4))
    with pytest.raises(InvalidRequest, match=r"^features: 5 dimensions, at most 4\.$"):
        tensor.check(message, "features")


def test_floats_of_another_dtype_are_refused() -> None:
    message = pb.Tensor(dtype=pb.D_TYPE_BFLOAT16, shape=[2], data=bytes(4))
    with pytest.raises(InvalidRequest, match=r"^confidence: dtype must be float32\.$"):
        tensor.unpack_floats(message, "confidence")
