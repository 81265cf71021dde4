"""Which lines of a log reach the screen."""

import json
from pathlib import Path

from deploy.local.startup_log import Entry, StartupLog


def line(event: str, logger: str = "verifier_svc.build", level: str = "info", **more: str) -> str:
    return json.dumps({"event": event, "logger": logger, "level": level, **more}) + "\n"


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_news_are_what_came_since_the_last_look(tmp_path: Path) -> None:
    log = tmp_path / "verifier.log"
    log.write_text(line("of an earlier start"))
    journal = StartupLog(log)
    assert journal.news() == []
    append(log, line("loading the target") + line("warming up")[:20])
    assert journal.news() == [Entry("loading the target", False)]
    append(log, line("warming up")[20:])
    assert journal.news() == [Entry("warming up", False)]
    assert journal.news() == []


def test_warnings_come_with_their_reason(tmp_path: Path) -> None:
    log = tmp_path / "verifier.log"
    journal = StartupLog(log)
    assert journal.news() == []  # it has not been made yet
    log.write_text(line("no compiled kernels", level="warning", reason="there is no g++"))
    assert journal.news() == [Entry("no compiled kernels (there is no g++)", True)]


def test_libraries_and_other_lines_stay_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    journal = StartupLog(log)
    others = ["12:M 30 Nov * Valkey is starting\n", "[1, 2]\n", '{"event": "half"}\n']
    started = line("Started server process", "uvicorn.error")
    log.write_text("".join([*others, started, line("serving", "gateway.server")]))
    assert journal.news() == [Entry("serving", False)]
