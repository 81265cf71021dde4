import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.common.result import RequestFailed, Result
from loadtests.exactness.kill_drafter import Kill, read_pid
from specserve.settings import StartError


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line names the drafter."""
    program = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-S", "-c", program, "drafter_svc"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    # Once it has written, it has its own command line and no longer that of its parent.
    process.stdout.readline()
    yield process
    process.stdout.close()
    process.kill()
    process.wait()


def test_it_kills_once_enough_tokens_have_come(sleeper: subprocess.Popen[bytes]) -> None:
    kill = Kill(read_pid(str(sleeper.pid)), after=4)
    kill(3)
    assert kill.at is None
    assert sleeper.poll() is None
    kill(5)
    assert sleeper.wait(10) == -9
    at = kill.at
    assert at is not None
    kill(9)
    assert kill.at == at


def test_a_process_that_is_gone_fails_the_request(sleeper: subprocess.Popen[bytes]) -> None:
    kill = Kill(sleeper.pid, after=1)
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(RequestFailed, match="had ended"):
        kill(1)


def test_evidence_is_read_from_the_chunks() -> None:
    kill = Kill(0, after=4, at=1.0)
    chunks = ((0.2, 1), (0.4, 3), (1.1, 2), (1.5, 1), (2.5, 2), (3.0, 1), (3.5, 4))
    result = Result((0,) * 14, 4.0, "length", chunks)
    assert kill.drafted_before(result) == 1
    # The chunk just after the kill had been drafted before it.
    assert kill.drafted_again(result) == [1.5, 2.5]


def test_process_ids(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    path = tmp_path / "drafter.pid"
    path.write_text(f"{sleeper.pid}\n")
    assert read_pid(str(path)) == sleeper.pid
    path.write_text("many")
    for text in (str(tmp_path / "nowhere"), str(path), "999999999"):
        with pytest.raises(StartError, match="--kill-drafter"):
            read_pid(text)


def test_no_other_process_is_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        with pytest.raises(StartError, match="is no drafter"):
            read_pid(str(other.pid))
        other.kill()
