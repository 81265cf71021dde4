"""`python -m deploy.local` as a person runs it, with fake services and the real Valkey."""

import hashlib
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.local.default_model import SMOLLM2
from deploy.local.preflight import misspelled
from deploy.local.settings import SHIPPED_DRAFTER, StackSettings
from specserve.settings import StartError
from tests.deploy.fake_stack import PARTS, Stack

NO_TARGET = "must be a Hugging Face id, or a folder or .gguf file that is there"
NO_DRAFTER = "must be a folder that is there, local, local:FOLDER, or off for none"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def test_it_starts_everything_and_ctrl_c_leaves_nothing(stack: Stack) -> None:
    with stack.running() as process:
        children = stack.children()
        assert children.keys() == PARTS
        url = f"http://127.0.0.1:{stack.port}"
        assert f"curl -s {url}/v1/chat/completions" in stack.output
        assert f"{url}/docs describes its API" in stack.output
        assert '"max_tokens": 100}' in stack.output
        assert urllib.request.urlopen(f"{url}/readyz").status == 200

        drafter, verifier = stack.told("drafter_svc", "flags"), stack.told("verifier_svc", "flags")
        gateway = stack.told("gateway", "flags")
        assert drafter["--checkpoint"] == str(stack.folder / "checkpoint")
        assert drafter["--target"] == verifier["--target"] == "./target.gguf"
        assert verifier["--drafter"] == drafter["--listen"]
        assert gateway["--verifiers"] == verifier["--listen"]
        assert drafter["--metrics-port"] != verifier["--metrics-port"]

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "may finish within 30 s." in stack.output
    assert not any(child.is_running() for child in children.values())
    ended = [line.split()[0] for line in stack.output.splitlines() if line.endswith("stopped")]
    assert ended == ["gateway", "verifier", "drafter", "valkey"]
    logs = {"valkey.log", "drafter.log", "verifier.log", "gateway.log"}
    assert {path.name for path in stack.logs.iterdir()} == logs | {"lock"}


def test_it_says_what_serves(stack: Stack) -> None:
    stack.environment["FAKE_KERNELS"] = "avx2"
    with stack.running():
        assert "Fake is served in bfloat16 on the CPU, by kernels for avx2.\n" in stack.output
        assert "a fifth" not in stack.output


def test_it_says_what_is_missing_where_there_is_no_compiler(stack: Stack) -> None:
    stack.environment["CXX"] = "no-such-compiler"
    with stack.running():
        assert "Fake is served in bfloat16 on the CPU, by torch's operators.\n" in stack.output
        assert "a fifth of the speed" in stack.output
        assert "there is no C++ compiler no-such-compiler. Install one" in stack.output


def test_settings_reach_the_services_and_the_password_nobody_else(stack: Stack) -> None:
    stack.environment["HOLDCOURSE_CACHE"] = "cache"
    with stack.running():
        for service in ("drafter_svc", "verifier_svc", "gateway"):
            environment = stack.told(service, "environment")
            assert environment["HOLDCOURSE_DTYPE"] == "float32"
            assert environment["HOLDCOURSE_DRAIN_GRACE_S"] == "30.0"
            assert environment["HOLDCOURSE_CACHE"] == str(stack.folder / "cache")
        told = stack.told("verifier_svc", "environment")
        assert (told["OMP_WAIT_POLICY"], told["GOMP_SPINCOUNT"]) == ("ACTIVE", "10000")

        store = stack.told("gateway", "environment")["HOLDCOURSE_REDIS_URL"]
        password, _, address = store.removeprefix("redis://:").partition("@")
        assert "HOLDCOURSE_REDIS_URL" not in stack.told("verifier_svc", "environment")
        assert (stack.logs / "valkey.conf").stat().st_mode & 0o777 == 0o600
        for child in stack.children().values():
            assert password not in " ".join(child.cmdline())
        host, port = address.removesuffix("/0").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"PING\r\n")
            assert client.recv(64).startswith(b"-NOAUTH")


def test_a_killed_command_takes_every_part_along(stack: Stack) -> None:
    with stack.running() as process:
        children = stack.children()
        process.kill()
        process.wait()
        gone, alive = psutil.wait_procs(list(children.values()), timeout=5)
        assert (len(gone), alive) == (4, [])


def test_a_lost_drafter_comes_back_on_the_same_port(stack: Stack) -> None:
    with stack.running() as process:
        before = stack.children()
        first = stack.told("drafter_svc", "flags")
        before["drafter_svc"].kill()
        stack.until(lambda: stack.output.count("drafter   ready") == 2)
        assert "The drafter was killed by SIGKILL." in stack.output
        assert "Without it answers are the same and come slower." in stack.output
        assert stack.told("drafter_svc", "flags") == first
        after = stack.children()
        assert {name for name in PARTS if before[name] != after[name]} == {"drafter_svc"}
        process.terminate()
        assert process.wait(20) == 0


def test_without_a_drafter_the_verifier_gets_none(stack: Stack) -> None:
    stack.environment["HOLDCOURSE_DRAFTER"] = "off"
    with stack.running():
        assert stack.children().keys() == PARTS - {"drafter_svc"}
        assert "--drafter" not in stack.told("verifier_svc", "flags")
        assert "No drafter is started" in stack.output


def test_a_local_drafter_runs_in_the_verifier(stack: Stack) -> None:
    stack.environment["HOLDCOURSE_DRAFTER"] = "local:checkpoint"
    with stack.running():
        assert stack.children().keys() == PARTS - {"drafter_svc"}
        flags = stack.told("verifier_svc", "flags")
        assert flags["--drafter"] == f"local:{stack.folder / 'checkpoint'}"
        assert "No drafter" not in stack.output


def test_local_alone_means_the_shipped_drafter() -> None:
    settings = StackSettings(drafter="local")
    assert settings.drafts_locally
    assert settings.checkpoint == SHIPPED_DRAFTER
    assert not StackSettings(drafter="").drafts_locally


def test_a_bad_setting_of_a_service_stops_the_start_with_its_sentence(stack: Stack) -> None:
    stack.environment["BAD_SETTING"] = "verifier_svc"
    result = stack.run()
    assert result.returncode == 2
    assert result.stderr == (
        "holdcourse: The verifier ended with status 2 before it was ready.\n"
        "    verifier_svc: --kv-memory: must be positive, -1 was given.\n"
    )
    assert "valkey    stopped" in result.stdout


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("HOLDCOURSE_DRAFT_LENGTH", "banana", "must be auto or a number from 0 to 16"),
        ("HOLDCOURSE_VERIFIER_METRICS_PORT", "banana", "must be a valid integer"),
        ("HOLDCOURSE_LOOKUP", "99", "must be off or a number"),
    ],
)
def test_a_bad_variable_of_any_service_is_named_before_anything_starts(
    stack: Stack, variable: str, value: str, sentence: str
) -> None:
    stack.environment[variable] = value
    result = stack.run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"holdcourse: {variable}: {sentence}")
    assert result.stderr.endswith(f", {value!r} was given.\n")
    assert not list(stack.folder.glob("*.flags"))


@pytest.mark.parametrize("name", ["target", "drafter"])
def test_a_bad_variable_of_the_stack_is_named_as_it_was_given(name: str) -> None:
    variable = f"HOLDCOURSE_{name.upper()}"
    with pytest.raises(StartError, match=f"^{variable}: must be .*, './no.gguf' was given.$"):
        StackSettings.read("holdcourse", [], {variable: "./no.gguf"})


def test_a_misspelled_variable_is_said_with_the_one_that_is_near(stack: Stack) -> None:
    stack.environment["HOLDCOURSE_DRAFT_LENGHT"] = "4"
    stack.environment["HOLDCOURSE_LOOKUP"] = "3"
    with stack.running():
        [told] = [line for line in stack.output.splitlines() if "is no setting" in line]
    assert told == (
        "HOLDCOURSE_DRAFT_LENGHT is no setting of the stack and does nothing: "
        "is HOLDCOURSE_DRAFT_LENGTH meant?"
    )


def test_what_nobody_reads_is_said() -> None:
    known = {"HOLDCOURSE_PORT", "HOLDCOURSE_DRAFTER"}
    assert misspelled({"HOLDCOURSE_PORT": "1", "OTHER": "2"}, known) == []
    near, far = misspelled({"HOLDCOURSE_DRAFTR": "", "HOLDCOURSE_": ""}, known)[::-1]
    assert near.endswith(": is HOLDCOURSE_DRAFTER meant?")
    assert far.startswith("HOLDCOURSE_ is no setting")


def test_another_target_has_no_drafter_and_says_why(stack: Stack) -> None:
    del stack.environment["HOLDCOURSE_DRAFTER"]
    with stack.running():
        assert stack.children().keys() == PARTS - {"drafter_svc"}
        assert "the shipped drafter fits SmolLM2-135M-Instruct" in stack.output


def test_the_default_models_own_file_has_the_shipped_drafter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "copy.gguf", tmp_path / "other.gguf"
    file.write_bytes(b"weights")
    other.write_bytes(b"Weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr("deploy.local.settings.SMOLLM2", replace(SMOLLM2, size=7, sha256=digest))
    assert StackSettings(target=str(file)).checkpoint == SHIPPED_DRAFTER
    assert StackSettings(target=str(other)).checkpoint is None
    assert StackSettings(target=str(file), drafter="off").checkpoint is None


def test_a_crash_at_the_start_shows_the_end_of_the_log(stack: Stack) -> None:
    (stack.folder / "gateway" / "__main__.py").write_text("raise RuntimeError('no luck')")
    result = stack.run()
    assert result.returncode == 1
    assert "The gateway ended with status 1 before it was ready." in result.stderr
    assert "RuntimeError: no luck" in result.stderr
    assert f"The whole log is {stack.logs / 'gateway.log'}." in result.stderr


def test_a_port_in_use_is_said_before_anything_starts(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.port)):
        result = stack.run()
    assert result.returncode == 2
    assert result.stderr == (
        f"holdcourse: Cannot listen on 127.0.0.1:{stack.port}: Address already in use. "
        "Set HOLDCOURSE_PORT to another.\n"
    )
    assert result.stdout == ""
    assert not (stack.folder / "cache").exists()


def test_a_second_start_on_the_same_port_is_refused(stack: Stack) -> None:
    slow = "import time; time.sleep(600)"
    (stack.folder / "verifier_svc" / "__main__.py").write_text(slow)
    first = subprocess.Popen(
        [sys.executable, "-m", "deploy.local"],
        cwd=stack.folder,
        env=stack.environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        stack.until((stack.logs / "verifier.log").exists)
        result = stack.run()
        assert result.returncode == 2
        assert "Another start of Holdcourse on port" in result.stderr
        first.send_signal(signal.SIGINT)  # in the middle of a start, too
        assert first.wait(20) == 0
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port", "0"], "--port: must be greater than or equal to 1, '0' was given."),
        (["--prot", "1"], "unrecognized arguments: --prot 1; see --help."),
        (["--target", "no.gguf"], f"--target: {NO_TARGET}, 'no.gguf' was given."),
        (["--drafter", "/no/where"], f"--drafter: {NO_DRAFTER}, '/no/where' was given."),
        (["--drafter", "local:/no/x"], f"--drafter: {NO_DRAFTER}, 'local:/no/x' was given."),
    ],
)
def test_a_bad_setting_is_one_sentence(stack: Stack, flags: list[str], sentence: str) -> None:
    result = stack.run(*flags)
    assert (result.returncode, result.stderr) == (2, f"holdcourse: {sentence}\n")
    assert not (stack.folder / "cache").exists()
