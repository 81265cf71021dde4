import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_gateway import Behaviour
from tests.support.process import spawn_module

SECONDS = "2s"


Entries = dict[str, dict[str, Any]]


def run(url: str, folder: Path, env: dict[str, str]) -> tuple[int, str, Entries]:
    """Run Locust without a browser; returns status, output, and its statistics by name."""
    log, path = folder / "log", folder / "load.json"
    users = ("-u", "6", "-r", "6", "-t", SECONDS, "--json-file", str(path.with_suffix("")))
    arguments = ("-f", "loadtests/locustfile.py", "--headless", "--host", url, *users)
    process = spawn_module("locust", *arguments, log=log, env=env)
    status = process.wait(60)
    entries = json.loads(path.read_text()) if path.exists() else []
    return status, log.read_text(), {entry["name"]: entry for entry in entries}


def test_users_report_and_meet_their_objectives(url: str, tmp_path: Path) -> None:
    env = {"HOLDCOURSE_MAX_TOKENS": "12", "HOLDCOURSE_SLO_TTFT_P95_MS": "60000"}
    status, log, stats = run(url, tmp_path, env)
    assert status == 0, log
    assert stats["time to first token"]["num_requests"] > 0
    assert stats["chunk gap"]["num_requests"] > 0
    assert stats["/v1/chat/completions"]["num_requests"] > 0
    assert stats["/v1/completions"]["num_requests"] > 0


def test_failures_and_missed_objectives_set_the_status(
    url: str, behaviour: Behaviour, tmp_path: Path, write_prompts: Callable[..., str]
) -> None:
    env = {
        "HOLDCOURSE_PROMPTS": write_prompts("refuse"),
        "HOLDCOURSE_SLO_TTFT_P95_MS": "0",
        "HOLDCOURSE_MAX_TOKENS": "12",
    }
    status, log, stats = run(url, tmp_path, env)
    assert status == 1, log
    assert "Objective missed: failed requests in %" in log
    assert "Objective missed: time to first token p95" in log
    assert stats["/v1/chat/completions"]["num_failures"] > 0


@pytest.mark.parametrize(
    ("variable", "text"),
    [("HOLDCOURSE_PROMPTS", "/nowhere"), ("HOLDCOURSE_SLO_TTFT_P95_MS", "fast")],
)
def test_bad_settings_end_it_with_a_sentence(
    url: str, tmp_path: Path, variable: str, text: str
) -> None:
    status, log, _ = run(url, tmp_path, {variable: text})
    assert status != 0
    assert "locustfile: " in log
    assert "Traceback" not in log
