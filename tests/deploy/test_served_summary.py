"""What the screen says of what serves."""

from pathlib import Path

import pytest

from deploy.local.served_summary import advice, describe
from specwire.v1 import verifier_pb2 as pb


def model(device: str = "cpu", kernels: str = "") -> pb.Model:
    return pb.Model(name="Tiny", dtype="bfloat16", device=device, kernels=kernels)


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_level_and_dtype_are_told() -> None:
    served = model(kernels="avx512_bf16")
    assert describe(served) == "Tiny is served in bfloat16 on the CPU, by kernels for avx512_bf16."
    assert advice(served, {}) is None


@pytest.mark.usefixtures("nothing")
def test_without_a_compiler_it_says_what_that_costs_and_what_to_install() -> None:
    assert describe(model()) == "Tiny is served in bfloat16 on the CPU, by torch's operators."
    said = advice(model(), {})
    assert said is not None
    assert "a fifth of the speed" in said
    assert "no C++ compiler g++" in said
    assert "apt-get install g++" in said
    assert "compiler clang++." in (advice(model(), {"CXX": "clang++"}) or "")


def test_with_a_compiler_that_fails_the_log_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "the verifier's log says why" in (advice(model(), {}) or "")


def test_kernels_that_are_switched_off_need_no_compiler() -> None:
    said = advice(model(), {"HOLDCOURSE_COMPILE": "off"})
    assert said is not None
    assert "HOLDCOURSE_COMPILE=off forbids" in said


@pytest.mark.usefixtures("nothing")
def test_a_gpu_needs_none_of_it() -> None:
    assert describe(model("cuda")) == "Tiny is served in bfloat16 on cuda."
    assert advice(model("cuda"), {}) is None
