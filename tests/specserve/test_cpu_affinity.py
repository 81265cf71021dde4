"""A runtime that binds its threads leaves the other threads of a process where they were."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from specserve import cpu_affinity
from specserve.settings import StartError

PROGRAM = """
import os, threading
from {package} import cpu_affinity
import torch
bound = os.sched_getaffinity(0)
cpu_affinity.take_all()
def team():
    torch.set_num_threads(2)
    torch.ones(1 << 22).sum()
    with cpu_affinity.unbound():
        print(len(os.sched_getaffinity(0)), flush=True)
    print(len(os.sched_getaffinity(0)), flush=True)
print(len(bound), len(os.sched_getaffinity(0)), flush=True)
engine = threading.Thread(target=team)
engine.start()
engine.join()
print(len(os.sched_getaffinity(0)))
"""


@pytest.mark.parametrize("package", ["verifier_svc", "drafter_svc"])
def test_only_the_threads_of_teams_are_bound(package: str) -> None:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        pytest.skip("one CPU")
    environment = {**os.environ, "OMP_PROC_BIND": "close", "OMP_PLACES": "threads"}
    environment["OMP_NUM_THREADS"] = "2"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(package=package)],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    if done.stdout.split()[0] == str(count):
        pytest.skip("this machine's OpenMP runtime does not bind")
    assert done.stdout.split() == ["1", str(count), str(count), "1", str(count)]


@pytest.mark.parametrize("given", [None, "1", str(len(os.sched_getaffinity(0))), "1,2"])
def test_thread_counts_that_can_run(given: str | None) -> None:
    cpu_affinity.check_threads({} if given is None else {"OMP_NUM_THREADS": given})


@pytest.mark.parametrize("given", ["0", "-1", "two", "", "1.5", "100000", ",2"])
def test_other_thread_counts_stop_the_start(given: str) -> None:
    with pytest.raises(StartError, match=r"OMP_NUM_THREADS: .*from 1 to \d+"):
        cpu_affinity.check_threads({"OMP_NUM_THREADS": given})


@pytest.mark.parametrize("service", ["verifier_svc", "drafter_svc"])
def test_a_service_says_so(service: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", service],
        env={**os.environ, "OMP_NUM_THREADS": "none"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{service}: OMP_NUM_THREADS: none must be" in done.stderr.splitlines()[-1]
