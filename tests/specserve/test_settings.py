from typing import Literal

import pytest

from specserve.settings import (
    Address,
    AutoInt,
    AutoSize,
    Device,
    Port,
    Settings,
    Size,
    StartError,
    setting,
)


class Example(Settings):
    """Settings of a service that does not exist."""

    listen: Address = setting("127.0.0.1:1", "Address.", env="HOLDCOURSE_EXAMPLE_LISTEN")
    target: str = setting(..., "Target.")
    kv_memory: Size = setting("512MiB", "Memory, 100% of it.", gt=0)
    speculation: bool = setting(True, "Speculate.")
    limit: int | None = setting(None, "Limit.", ge=1, le=9)
    dtype: Literal["auto", "float32"] = setting("auto", "Type.")
    metrics_port: Port = setting(0, "Port.")
    own_memory: AutoSize = setting("auto", "Memory.", gt=0)
    rows: AutoInt = setting("auto", "Rows.", ge=2)
    deadline_s: float = setting(1.0, "Deadline.", gt=0)
    device: Device = setting("auto", "Device.")


def read(*flags: str, **variables: str) -> Example:
    return Example.read("example", ["--target", "t", *flags], variables)


def sentence(*flags: str, **variables: str) -> str:
    with pytest.raises(StartError) as caught:
        read(*flags, **variables)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_defaults_are_read_like_values() -> None:
    settings = read()
    assert settings.kv_memory == 512 << 20
    assert settings.speculation is True
    assert settings.limit is None


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    variables = {"HOLDCOURSE_EXAMPLE_LISTEN": "h:2", "HOLDCOURSE_LIMIT": "3"}
    settings = read("--limit", "4", **variables)
    assert (settings.listen, settings.limit) == ("h:2", 4)


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("2GiB", 2 << 30), ("3 MB", 3_000_000)])
def test_sizes(text: str, size: int) -> None:
    assert read("--kv-memory", text).kv_memory == size


def test_what_the_machine_decides_on_is_none() -> None:
    for settings in (read(), read("--own-memory", "auto", HOLDCOURSE_ROWS="auto")):
        assert (settings.own_memory, settings.rows) == (None, None)
    settings = read("--own-memory", "3MiB", HOLDCOURSE_ROWS="4")
    assert (settings.own_memory, settings.rows) == (3 << 20, 4)
    assert sentence("--rows", "1").startswith("--rows: must be greater than or equal to 2")
    assert sentence("--own-memory", "0").startswith("--own-memory: must be greater than 0")


@pytest.mark.parametrize("word", ["off", "false", "0"])
def test_switches(word: str) -> None:
    assert read(f"--speculation={word}").speculation is False
    assert read(HOLDCOURSE_SPECULATION=word).speculation is False
    assert read("--speculation", HOLDCOURSE_SPECULATION=word).speculation is True


def test_an_empty_variable_counts_as_absent() -> None:
    assert read(HOLDCOURSE_LIMIT="", HOLDCOURSE_UNKNOWN="x").limit is None


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--limit", "0"], ["--limit", "1", "'0'"]),
        (["--limit", "ten"], ["--limit", "integer", "'ten'"]),
        (["--listen", "localhost"], ["--listen", "HOST:PORT"]),
        (["--listen", "h:70000"], ["--listen", "HOST:PORT"]),
        (["--kv-memory", "much"], ["--kv-memory", "512MiB"]),
        (["--kv-memory", "0"], ["--kv-memory", "0"]),
        (["--speculation", "perhaps"], ["--speculation", "on or off"]),
        (["--dtype", "int3"], ["--dtype", "float32"]),
        (["--metrics-port", "65536"], ["--metrics-port", "65536"]),
        (["--deadline-s", "nan"], ["--deadline-s", "finite", "'nan'"]),
        (["--deadline-s", "inf"], ["--deadline-s", "finite"]),
        (["--device", "cuda:x"], ["--device: must be auto, cpu, cuda", "'cuda:x'"]),
        (["--bogus"], ["--bogus"]),
        (["--spec", "on"], ["--spec"]),
        (["--target"], ["--target"]),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_flag(
    flags: list[str], parts: list[str]
) -> None:
    text = sentence(*flags)
    assert all(part in text for part in parts)


def test_a_bad_variable_is_named_as_such() -> None:
    text = sentence(HOLDCOURSE_EXAMPLE_LISTEN="nowhere")
    assert text.startswith("HOLDCOURSE_EXAMPLE_LISTEN:")


def test_what_is_required_is_asked_for() -> None:
    with pytest.raises(StartError, match="--target or HOLDCOURSE_TARGET is required"):
        Example.read("example", [], {})


def test_help_names_flag_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--kv-memory" in shown
    assert "Memory, 100% of it. [HOLDCOURSE_KV_MEMORY; default 512MiB]" in shown
    assert "[HOLDCOURSE_TARGET; required]" in shown


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().limit = 3
