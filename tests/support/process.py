"""Child processes that never outlive the test run."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.local.process import LEASH

ROOT = Path(__file__).resolve().parents[2]


def spawn(
    argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `argv` in a session of its own; both its outputs are appended to `log`.

    It is killed with the test process, whatever ends that. `env` is added to the environment.
    """
    # The kernel would take the end of any other thread for the end of the process (leash.py).
    assert threading.current_thread() is threading.main_thread()
    command = [sys.executable, "-IS", str(LEASH), str(os.getpid()), "KILL", *argv]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def spawn_module(
    module: str, *arguments: str, log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `python -m module arguments`, as `spawn` does."""
    return spawn([sys.executable, "-m", module, *arguments], log, env)


def stop(process: subprocess.Popen[bytes], grace: float = 10.0) -> int:
    """Sends SIGTERM, after `grace` seconds SIGKILL; returns the exit status."""
    process.terminate()
    try:
        return process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
