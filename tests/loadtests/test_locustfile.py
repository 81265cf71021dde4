import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loadtests.fake_gateway import Behaviour
from tests.support.process import spawn_module

SECONDS = "2s"


def run(url: str, folder: Path, env: dict[str, str]) -> tuple[int, str, dict[str, dict[str, str]]]:
    """Run Locust without a browser; returns status, output, and its statistics by name."""
    log, stats = folder / "log", folder / "load"
    arguments = ("-f", "loadtests/locustfile.py", "--headless", "-u", "6", "-r", "6", "-t", SECONDS)
    process = spawn_module(
        "locust", *arguments, "--host", url, "--csv", str(stats), log=log, env=env
    )
    status = process.wait(60)
    path = folder / "load_stats.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    return status, log.read_text(), {row["Name"]: row for row in rows}


def test_users_report_and_meet_their_objectives(url: str, tmp_path: Path) -> None:
    env = {"HOLDCOURSE_MAX_TOKENS": "12", "HOLDCOURSE_SLO_TTFT_P95_MS": "60000"}
    status, log, stats = run(url, tmp_path, env)
    assert status == 0, log
    assert int(stats["time to first token"]["Request Count"]) > 0
    assert int(stats["chunk gap"]["Request Count"]) > 0
    chats = int(stats["/v1/chat/completions"]["Request Count"])
    assert chats >= int(stats["time to first token"]["Request Count"])
    assert int(stats["/v1/completions"]["Request Count"]) > 0


def test_failures_and_missed_objectives_set_the_status(
    url: str, behaviour: Behaviour, tmp_path: Path, write_prompts: Callable[..., str]
) -> None:
    env = {
        "HOLDCOURSE_PROMPTS": write_prompts("refuse", "ask"),
        "HOLDCOURSE_SLO_TTFT_P95_MS": "0",
        "HOLDCOURSE_MAX_TOKENS": "12",
    }
    status, log, stats = run(url, tmp_path, env)
    assert status == 1, log
    assert "Objective missed: failed requests in %" in log
    assert "Objective missed: time to first token p95" in log
    assert int(stats["/v1/chat/completions"]["Failure Count"]) > 0


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
