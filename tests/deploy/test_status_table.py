"""What is shown, on a terminal and elsewhere."""

import io

from rich.console import Console

from deploy.local.status_table import StatusTable


def shown(terminal: bool, *steps: int) -> str:
    output = io.StringIO()
    screen = StatusTable(Console(file=output, force_terminal=terminal, color_system=None, width=80))
    for done in steps:
        screen.progress("Fetching", done, 100_000_000)
    return output.getvalue()


def test_progress_elsewhere_is_a_line_for_each_quarter() -> None:
    steps = [million * 1_000_000 for million in (0, 1, 24, 26, 27, 80, 100, 100)]
    assert shown(False, *steps) == "".join(
        f"Fetching: {percent:3} % of 100 MB\n" for percent in (0, 26, 80, 100)
    )


def test_progress_on_a_terminal_stays_on_its_line_until_it_is_done() -> None:
    text = shown(True, 0, 50_000_000, 100_000_000, 100_000_000)
    assert text.count("\r") == 2
    assert text.endswith("\rFetching: 100 % of 100 MB\n")


def test_what_a_part_does_is_a_line_elsewhere_and_in_place_on_a_terminal() -> None:
    for terminal in (False, True):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, color_system=None, width=80)
        screen = StatusTable(console)
        screen.watch(["verifier"])
        screen.state("verifier", "starting")
        screen.doing("verifier", "compiling [once]")
        screen.settle()
        screen.state("verifier", "ready")
        last = output.getvalue().splitlines()[-2 if not terminal else -1 :]
        text = output.getvalue()
        assert "compiling [once]" in text
        assert ("verifier  compiling [once]" in text) is not terminal
        assert "ready after" in last[-1]
        assert "compiling" not in last[-1]


def test_warnings_are_whole_lines_in_a_colour() -> None:
    output = io.StringIO()
    StatusTable(Console(file=output, force_terminal=True, color_system="standard")).warn(
        "slow " * 30
    )
    assert output.getvalue() == "\x1b[33m" + "slow " * 30 + "\x1b[0m\n"


def test_text_is_printed_as_it_is_however_long() -> None:
    output = io.StringIO()
    line = 'curl "[bold]' + "x" * 200 + '"'
    StatusTable(Console(file=output, width=40)).say(line)
    assert output.getvalue() == line + "\n"
