import asyncio
import json
import os
from pathlib import Path

import pytest
import torch

from loadtests.common.client import Served
from loadtests.common.draft_stats import RoundStats
from loadtests.common.result import RequestFailed
from loadtests.peers import vllm_child
from loadtests.peers.environment import held_to
from loadtests.peers.vllm_peer import Drafter, VllmPeer, draft_report, engine_arguments, environment
from specserve.settings import StartError
from tests.loadtests.conftest import python_with

DRAFTER = Drafter("checkpoint", 3)


def arguments(drafter: Drafter | None, model: str = "model") -> dict[str, object]:
    return engine_arguments(model, "float32", sequences=2, longest=20, eager=True, drafter=drafter)


async def test_generations_run_side_by_side_and_say_what_was_accepted(vllm_python: str) -> None:
    async with VllmPeer.running("vllm-eagle3", vllm_python, arguments(DRAFTER), os.environ) as peer:
        both = await asyncio.gather(
            *(peer.generate([first, 2], max_tokens=8, ignore_eos=True) for first in (1, 5))
        )
        assert peer.facts["arguments"]["speculative_config"]["num_speculative_tokens"] == 3
        assert peer.facts["environment"]["VLLM_CPU_OMP_THREADS_BIND"]
    assert [result.tokens[:2] for result in both] == [(3, 4), (7, 8)]
    assert [count for _, count in both[0].chunks] == [1, 3, 3, 1]
    assert 0 < both[0].chunks[0][0] <= both[0].chunks[-1][0] <= both[0].seconds
    rounds = RoundStats.of(both)
    assert rounds is not None
    assert (rounds.rounds, rounds.drafted_rounds) == (6, 6)
    assert rounds.shares == (1.0, 1.0, 0.0)
    assert rounds.parts_ms == {}


async def test_plain_vllm_drafts_nothing(vllm_python: str) -> None:
    async with VllmPeer.running("vllm", vllm_python, arguments(None), os.environ) as peer:
        result = await peer.generate([1], max_tokens=4)
    assert [count for _, count in result.chunks] == [1, 1, 1, 1]
    assert result.report["proposed_at"] == []


async def test_failures_are_of_one_request_or_of_all(vllm_python: str) -> None:
    async with VllmPeer.running("vllm", vllm_python, arguments(None), os.environ) as peer:
        with pytest.raises(RequestFailed, match="begins with 9"):
            await peer.generate([9], max_tokens=4)
        assert (await peer.generate([1], max_tokens=4)).finish_reason == "length"
        for prompt in ([8], [1]):
            with pytest.raises(RequestFailed, match="the vllm process was killed by SIGKILL"):
                await peer.generate(prompt, max_tokens=4)


async def test_peers_that_cannot_start(vllm_python: str, tmp_path: Path) -> None:
    bare = python_with(tmp_path, tmp_path)
    for python, model, sentence in (
        (str(tmp_path / "none"), "model", "cannot be run"),
        (bare, "model", "cannot import vLLM: No module named 'vllm'"),
        (vllm_python, "broken", r"initialization failed.*\(OSError: no weights here"),
    ):
        with pytest.raises(StartError, match=sentence):
            async with VllmPeer.running("vllm", python, arguments(None, model), os.environ):
                pass


def test_accepted_tokens_by_step_become_counts_by_position() -> None:
    report = draft_report(6, [3, 3, 0, 2, 3], [0, 3, 0, 1, 2])
    assert report["drafted_rounds"] == 4
    assert (report["proposed_at"], report["accepted_at"]) == ([4, 4, 3], [3, 2, 1])


def test_a_checkpoint_of_another_target_is_refused(tmp_path: Path) -> None:
    drafter, served = Drafter(str(tmp_path), 5), Served("tiny", "float32", "f" * 64, {})
    with pytest.raises(StartError, match=r"no config\.json"):
        drafter.check(served)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"holdcourse": {"target_fingerprint": "0" * 64}}))
    with pytest.raises(StartError, match="made for another target than tiny"):
        drafter.check(served)
    for fitting in ({"holdcourse": {"target_fingerprint": "f" * 64}}, {}):
        config.write_text(json.dumps(fitting))
        drafter.check(served)


@pytest.mark.parametrize(
    ("level", "left"),
    [
        ("AVX2", {"avx2"}),
        ("AVX512_CORE", {"avx2", "avx512_f"}),
        ("AVX512_CORE_BF16", {"avx2", "avx512_f", "avx512_bf16", "avx512_vnni"}),
        (None, {"avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_tile"}),
    ],
)
def test_vllm_sees_no_more_of_the_cpu_than_its_level(
    monkeypatch: pytest.MonkeyPatch, level: str | None, left: set[str]
) -> None:
    there = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_tile")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(there, True))
    vllm_child.hold(level)
    assert torch.cpu.get_capabilities().keys() == left
    assert torch.cpu._is_avx512_supported() == ("avx512_f" in left)
    assert torch.cpu._is_amx_tile_supported() == ("amx_tile" in left)


def test_a_level_holds_in_the_one_process_alone() -> None:
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment({})
    assert environment(held_to("avx2", {}))["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_the_environment_is_the_users_without_our_packages() -> None:
    given = {"PYTHONPATH": "ours", "VLLM_CPU_KVCACHE_SPACE": "7", "PATH": "p"}
    built = environment(given)
    assert "PYTHONPATH" not in built
    assert (built["VLLM_CPU_KVCACHE_SPACE"], built["PATH"]) == ("7", "p")
    assert len(built["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == len(os.sched_getaffinity(0))
