import os
import sys

import pytest
import torch

from loadtests.peers.environment import Isa, foreign, held_to, telling
from loadtests.peers.json_child import Child
from loadtests.peers.vllm_peer import environment


@pytest.mark.parametrize(
    ("isa", "aten", "onednn", "mkl"),
    [
        ("avx2", "avx2", "AVX2", "AVX2"),
        ("avx512", "avx512", "AVX512_CORE", "AVX512"),
        ("avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512"),
    ],
)
def test_every_library_is_held_to_the_level(isa: Isa, aten: str, onednn: str, mkl: str) -> None:
    given = {"PATH": "p", "ATEN_CPU_CAPABILITY": "default"}
    assert held_to(isa, given) == {
        "PATH": "p",
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "DNNL_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
    }


def test_native_is_what_the_user_has() -> None:
    given = {"PATH": "p", "ATEN_CPU_CAPABILITY": "default"}
    assert held_to("native", given) == given


async def test_torch_obeys() -> None:
    said = "import json, torch; print(json.dumps({'id': 0, 'value': "
    command = [sys.executable, "-c", f"{said}torch.backends.cpu.get_cpu_capability()}}))"]
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this machine has no level to be held to")
    async with Child.running("torch", command, held_to("avx2", os.environ)) as child:
        assert str(child.facts) == "AVX2"


def test_another_python_finds_none_of_our_packages() -> None:
    given = {"PYTHONPATH": "ours", "PYTHONHOME": "h", "VIRTUAL_ENV": "v", "PATH": "p"}
    assert foreign(given) == {"PATH": "p", "PYTHONSAFEPATH": "1"}
    assert environment(held_to("avx2", given))["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_what_explains_a_speed_is_told() -> None:
    given = {"PATH": "p", "OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "HOME": "h"}
    assert telling(given) == {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"}
