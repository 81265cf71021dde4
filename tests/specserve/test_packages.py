"""Commands whose packages are not installed."""

import subprocess
import sys

import pytest

from tests.support.process import ROOT

# As `python -m MODULE --help` where a package is missing.
WITHOUT = """
import runpy, sys
module, missing = sys.argv[1:]
sys.modules[missing] = None
sys.argv = [module, "--help"]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "missing"),
    [("loadtests.bench", "httpx"), ("drafter_svc.train", "pygal")],
)
def test_a_missing_package_is_one_sentence(module: str, missing: str) -> None:
    ended = run(WITHOUT, module, missing)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"{missing} is not installed: this command needs the packages of `make install`.\n"
    )


def test_other_errors_keep_their_traceback() -> None:
    for line in ("import specwire.nowhere", "1 / 0"):
        ended = run(f"import loadtests\n{line}")
        assert ended.returncode == 1
        assert "Traceback" in ended.stderr
