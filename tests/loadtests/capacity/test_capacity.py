"""The capacity benchmark: its coin, its stand-in for a remote drafter, and a whole run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from drafter_svc.engine.engine import Engine
from loadtests.capacity.emulated_drafter import Delayed, Delays
from loadtests.capacity.engine_run import Window
from loadtests.capacity.kernel_profiler import KernelProfile
from loadtests.capacity.random_acceptance import RandomAcceptance
from loadtests.capacity.recorded import check_recorded
from loadtests.capacity.report import summarize
from specserve.settings import StartError
from specwire.messages import CatchUpAck, Draft, DraftCost, DraftSource, Proposals
from verifier_svc.model.decoder.cuda_graph_backend import CudaGraphBackend
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling

NAMES = ("plain", "here", "there")


def drafted(draft: tuple[int, ...], seq: int = 1) -> Sequence:
    given = GenerationRequest("r", (1, 2), 2, Sampling(temperature=0.0, max_tokens=9))
    made = Sequence(seq, given, frozenset(), 100)
    made.draft = draft
    return made


@pytest.mark.parametrize("chance", [0.0, 0.6, 1.0])
def test_a_coin_accepts_at_its_rate_whatever_the_target_says(chance: float) -> None:
    coin = RandomAcceptance(chance)
    sequences = [drafted((30, 31, 32)), drafted(())]
    best = torch.tensor([50, 51, 52, 53, 60])  # no draft token agrees
    counts = [0, 0, 0, 0]
    for _ in range(2000):
        first, second = coin(sequences, best, None)
        assert first is not None
        assert second is not None
        *accepted, last = first.tokens
        assert accepted == [30, 31, 32][: len(accepted)]
        assert last == 50, "what was drawn where the target goes on"
        assert second.tokens == [60]
        counts[len(accepted)] += 1
    expected = [1 - chance, chance * (1 - chance), chance**2 * (1 - chance), chance**3]
    assert [n / 2000 for n in counts] == pytest.approx(expected, abs=0.05)


def test_coins_of_one_seed_fall_alike() -> None:
    one, other = RandomAcceptance(0.5), RandomAcceptance(0.5)
    best = torch.arange(9)
    sequences = [drafted(tuple(range(40, 48)))]
    one(sequences, best, None)
    for coin in (one, other):
        coin.seed(7)
    assert [one(sequences, best, None) for _ in range(20)] == [
        other(sequences, best, None) for _ in range(20)
    ]


def proposals(chains: int, compute_us: int = 0) -> Proposals:
    drafts = [Draft(seq, 5, (1, 2), (0.5, 0.5)) for seq in range(chains)]
    nothing = Draft(99, 5, ())
    found = Draft(98, 5, (1,), source=DraftSource.LOOKUP)
    return Proposals((*drafts, nothing, found), (), DraftCost(3, compute_us))


def test_delays_are_those_of_the_number_of_chains() -> None:
    delays = Delays.parse(str(Delays({4: 0.002, 8: 0.004}, 0.0001)))
    assert delays == Delays({4: 0.002, 8: 0.004}, 0.0001)
    taken = [delays.of(proposals(chains)) for chains in (0, 1, 4, 6, 8, 20)]
    assert taken == pytest.approx([0, 0.002, 0.002, 0.003, 0.004, 0.004])
    assert delays.of(CatchUpAck(1, 64, 64, 30)) == pytest.approx(0.003)


def test_answers_are_held_back_until_their_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(Engine, "open_link", lambda self, link, deliver: given.append(deliver))
    engine = Delayed(cast("Any", None), lambda: None)
    engine.delays = Delays({2: 0.08}, 0.002)
    answers: list[Any] = []
    engine.open_link(1, answers.append)
    for event, least in ((proposals(2, 20_000), 0.06), (CatchUpAck(1, 20, 20, 20, 10_000), 0.03)):
        began = time.monotonic()
        given[0](event)
        assert time.monotonic() - began >= least, "what it has taken counts"
    assert answers[0].cost == DraftCost(3, 80_000)
    assert answers[1] == CatchUpAck(1, 20, 20, 20, 10_000)
    given[0](late := proposals(2, 90_000))
    assert answers[2] == late


def test_kernels_of_other_threads_are_summed_up() -> None:
    def work(until: threading.Event) -> None:
        matrix = torch.ones(300, 300)
        while not until.is_set():
            matrix @ matrix

    until = threading.Event()
    thread = threading.Thread(target=work, args=[until])
    kernels = KernelProfile()
    thread.start()
    began = time.perf_counter()
    kernels.start()
    time.sleep(0.3)
    kernels.stop()
    took = time.perf_counter() - began
    until.set()
    thread.join()
    assert 0.1 < kernels.seconds < 1.1 * took


def wave(arm: str, repeat: int, speed: float, kernels: float | None = None) -> Window:
    return Window(arm, 4, repeat, speed, 0.020, 0.016, 0.004, 4, 1.0, 0.7, kernels)


def test_arms_are_compared_wave_by_wave() -> None:
    speeds = {"plain": (100.0, 50.0), "here": (150.0, 75.0), "there": (180.0, 90.0)}
    waves = [wave(arm, at, speed) for arm, both in speeds.items() for at, speed in enumerate(both)]
    (level,) = summarize([*waves, wave("here", 2, 1.0, kernels=0.016)], NAMES).levels
    ratios = level.local_by_plain, level.remote_by_plain, level.remote_by_local
    assert [ratio and ratio.median for ratio in ratios] == pytest.approx([1.5, 1.8, 1.2])
    assert level.expected == pytest.approx(1.25)
    assert level.over_kernels == pytest.approx(1.25)
    assert [arm.tokens_per_second for arm in level.arms] == [75, 112.5, 135]
    (bare,) = summarize(waves[:1], NAMES).levels
    assert bare.over_kernels is None


@pytest.mark.parametrize(
    ("device", "form", "chains", "missing"),
    [
        ("cpu", "layers", False, None),
        ("cuda", "graphs", True, None),
        ("cuda", "layers", True, "rounds of the target"),
        ("cuda", "graphs", False, "chains of the drafter"),
    ],
)
def test_figures_of_a_gpu_that_records_nothing_are_refused(
    device: str, form: str, chains: bool, missing: str | None
) -> None:
    target: Any = SimpleNamespace(device=torch.device(device), form=form)
    drafter: Any = SimpleNamespace(worker=SimpleNamespace(alive=chains))
    with pytest.raises(StartError, match=missing) if missing else nullcontext():
        check_recorded(target, drafter)


def test_recording_that_has_failed_is_dead() -> None:
    def fails(_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = CudaGraphBackend(cast("Any", None), 64, fails)
    assert graphs.form == "graphs"
    graphs._recording.attempt(lambda record: record(lambda: ()))
    assert graphs.form == "layers"


def capacity(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.capacity", "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_a_whole_run(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "capacity.json"
    sizes = ["--streams", "2,1", "--prompt", "20", "--tokens", "96", "--repeats", "2"]
    given = ["--shape", str(tiny_llama), "--chance", "1", "--compile", "off"]
    done = capacity(*given, *sizes, "--kv-memory", "64MiB", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "remote (emulated)" in done.stdout
    document = json.loads(output.read_text())
    assert document["complete"]
    assert [level["streams"] for level in document["summary"]["levels"]] == [1, 2]
    runs = document["runs"]
    assert len(runs) == 2 * (3 * 2 + 1)
    for run in runs:
        length = run["tokens_per_second"] * run["round"] / run["streams"]
        drafts = run["arm"] != "plain"
        assert run["accepted"] == (1 if drafts else 0)
        # On a busy machine some drafts come too late, and the last of a text may be shorter.
        assert 0.999 + 2.5 * run["drafted"] <= length <= 1.001 + 3 * run["drafted"]
        assert (run["drafted"] > 0) is drafts
        assert (run["draft"] > 0) is drafts
        assert (run["kernels"] is None) is (run["repeat"] < 2)
    delays = document["delays"]["batches"]
    remote = [run for run in runs if run["arm"] == "remote (emulated)" and run["streams"] == 1]
    assert all(run["draft"] >= 0.99 * delays["1"] for run in remote)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--shape", "llama-9"], "--shape: llama-9 is none of"),
        (["--streams", "1,none"], "streams"),
        (["--shape", "smollm2-135m", "--kv-memory", "1MiB"], "--kv-memory"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], reason: str) -> None:
    done = capacity(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
