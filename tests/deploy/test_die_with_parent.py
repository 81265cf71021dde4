"""A leashed command ends with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from deploy.local.process import LEASH

# Starts a leashed sleeper, prints its process id, and waits to be killed.
PARENT = """
import os, subprocess, sys, time
leash = [sys.executable, "-IS", sys.argv[1], str(os.getpid()), "KILL", "sleep", "600"]
print(subprocess.Popen(leash).pid, flush=True)
time.sleep(600)
"""


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{pid} is still running"
        time.sleep(0.01)


def wait_for_name(pid: int, name: str) -> None:
    deadline = time.monotonic() + 5
    while psutil.Process(pid).name() != name:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_parent_takes_the_command_along() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(LEASH)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for_name(child, "sleep")
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(child)


def test_a_parent_that_is_gone_already_means_no_start(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    leash = [sys.executable, "-IS", str(LEASH), str(os.getpid() + 1), "KILL", "touch", str(marker)]
    result = subprocess.run(leash, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "is gone" in result.stderr
    assert not marker.exists()


def test_a_command_that_does_not_exist_is_one_sentence() -> None:
    leash = [sys.executable, "-IS", str(LEASH), str(os.getpid()), "KILL", "/no/such/program"]
    result = subprocess.run(leash, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "/no/such/program cannot be run: No such file or directory\n"
