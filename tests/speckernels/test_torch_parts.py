"""The torch ends of the wire: the codec and the fingerprint."""

import copy
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from speckernels.device import device_name, pick_device
from speckernels.fingerprint import target_fingerprint
from speckernels.tensor_codec import pack, unpack
from specserve.settings import StartError
from specwire.errors import InvalidRequest
from specwire.v1 import tensor_pb2 as pb

DTYPES = {
    torch.float32: pb.D_TYPE_FLOAT32,
    torch.bfloat16: pb.D_TYPE_BFLOAT16,
    torch.float16: pb.D_TYPE_FLOAT16,
}
shapes = st.lists(st.integers(0, 5), max_size=4)


def bits(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@given(st.sampled_from(list(DTYPES)), shapes, st.randoms(use_true_random=False))
def test_any_bits_come_back(dtype: torch.dtype, shape: list[int], random: object) -> None:
    count = int(torch.tensor(shape).prod()) * dtype.itemsize
    raw = bytes(random.getrandbits(8) for _ in range(count))  # type: ignore[attr-defined]
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    value = flat.reshape(shape)
    message = pb.Tensor.FromString(pack(value).SerializeToString())
    assert message.dtype == DTYPES[dtype]
    back = unpack(message, "features")
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert bits(back) == raw


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_views_are_packed_row_by_row(dtype: torch.dtype) -> None:
    whole = torch.randn(6, 8, dtype=torch.float32, requires_grad=True).to(dtype)
    view = whole.t()[1:4:2, ::3]
    assert not view.is_contiguous()
    back = unpack(pack(view), "features")
    assert torch.equal(back, view)
    back.zero_()  # memory of its own, writable
    assert view.abs().sum() > 0


def test_several_are_joined_along_their_first_dimension() -> None:
    whole = torch.randn(7, 8).bfloat16()
    pieces = whole[:2], whole[2:2], whole[2:], whole.t()[:8:4, :].t()[:, :2].repeat(1, 4)
    back = unpack(pack(*pieces), "features")
    assert torch.equal(back, torch.cat(pieces))
    back.zero_()
    assert whole.abs().sum() > 0


def test_other_dtypes_cannot_travel() -> None:
    with pytest.raises(InvalidRequest, match="int64"):
        pack(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (pb.Tensor(dtype=pb.D_TYPE_BFLOAT16, shape=[2], data=bytes(3)), "takes 4 bytes, 3 came"),
        (pb.Tensor(shape=[1], data=bytes(4)), "unknown dtype"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[2**63, 2**60]), "elements"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[0, 2**64 - 1]), "elements"),
    ],
)
def test_broken_messages_are_refused(message: pb.Tensor, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^features: .*{sentence}"):
        unpack(message, "features")


def test_the_fingerprint_names_weights_not_their_dtype(tiny_llama: Path) -> None:
    loaded = [
        AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert target_fingerprint(loaded[0]) == target_fingerprint(loaded[1])


def test_the_fingerprint_changes_with_any_parameter_and_any_shape() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    prints = {target_fingerprint(model)}
    for name, _ in model.named_parameters():
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name)[0] += 0.5
        prints.add(target_fingerprint(other))
    reshaped = copy.deepcopy(model)
    reshaped[0].weight = torch.nn.Parameter(model.get_parameter("0.weight")[:2].clone())
    prints.add(target_fingerprint(reshaped))
    assert len(prints) == 6


def test_a_parameter_without_dimensions_has_a_place_in_the_fingerprint() -> None:
    model = torch.nn.Module()
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    before = target_fingerprint(model)
    with torch.no_grad():
        model.get_parameter("scale").add_(1)
    assert target_fingerprint(model) != before


def test_all_cores_of_a_host_are_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr("speckernels.device._BOOT_ID", boot)
    boot.write_text("3d6b8a10\n")
    assert device_name(torch.device("cpu")) == device_name(torch.device("cpu", 0)) == "cpu:3d6b8a10"
    boot.unlink()
    assert device_name(torch.device("cpu")) == f"cpu:{socket.gethostname()}"


def test_each_gpu_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"GPU-{device.index}")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert device_name(torch.device("cuda", 1)) == "cuda:GPU-1"


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [(0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda"), (2, "cuda:1", "cuda:1")],
)
def test_devices_by_name(
    monkeypatch: pytest.MonkeyPatch, gpus: int, name: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(pick_device(name)) == device


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [(0, "auto", "cpu"), (1, "auto", "cuda"), (4, "auto", "cuda:3"), (4, "cuda:1", "cuda:1")],
)
def test_the_last_of_several_gpus_is_not_the_first(
    monkeypatch: pytest.MonkeyPatch, gpus: int, name: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(pick_device(name, last=True)) == device


@pytest.mark.parametrize(("gpus", "name"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, gpus: int, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(StartError, match=f"--device: {name} was asked for, and torch sees"):
        pick_device(name)
