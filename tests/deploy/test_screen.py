"""What is shown, on a terminal and elsewhere."""

import io

from rich.console import Console

from deploy.local.screen import Screen


def shown(terminal: bool, *steps: int) -> str:
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=terminal, color_system=None, width=80))
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


def test_text_is_printed_as_it_is_however_long() -> None:
    output = io.StringIO()
    line = 'curl "[bold]' + "x" * 200 + '"'
    Screen(Console(file=output, width=40)).say(line)
    assert output.getvalue() == line + "\n"
