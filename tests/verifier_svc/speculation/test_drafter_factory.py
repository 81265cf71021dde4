"""Which drafter the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from specserve.settings import StartError
from specwire.local_drafter import LocalSetup
from tests.support.running_engine import settings_for, target_of
from verifier_svc.speculation import drafter_factory
from verifier_svc.speculation.drafter_factory import drafter_port
from verifier_svc.speculation.grpc_client import DrafterClient


class Entry:
    """What is installed: an entry point whose factory is recorded, or fails."""

    def __init__(self, load_error: Exception | None = None, error: Exception | None = None) -> None:
        self.setups: list[LocalSetup] = []
        self._load_error = load_error
        self._error = error

    def load(self) -> Any:
        if self._load_error:
            raise self._load_error
        return self._make

    def _make(self, setup: LocalSetup) -> str:
        self.setups.append(setup)
        if self._error:
            raise self._error
        return "the port"


def install(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    def entry_points(*, group: str, name: str) -> tuple[Entry, ...]:
        return entries if (group, name) == ("holdcourse.drafters", "local") else ()

    monkeypatch.setattr(drafter_factory, "entry_points", entry_points)


def port(folder: Path, *flags: str) -> Any:
    return drafter_port(settings_for(folder, *flags), target_of(folder))


async def test_an_address_is_a_drafter_over_grpc(tiny_llama: Path) -> None:
    assert isinstance(port(tiny_llama, "--drafter", "localhost:50052"), DrafterClient)
    assert port(tiny_llama) is None
    assert port(tiny_llama, "--drafter", "localhost:1", "--speculation", "off") is None


@pytest.mark.parametrize(
    ("given", "device", "projects"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("on", "cpu", True),
        ("on", "cuda", True),
        ("off", "cuda", False),
    ],
)
def test_features_are_projected_where_that_costs_nothing(
    given: str, device: str, projects: bool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speckernels.device.pick_device", lambda name: torch.device(device))
    flags = ["--drafter", "localhost:1", "--project-features", given]
    assert settings_for(tiny_llama, *flags).projects is projects


def test_features_stay_where_they_are_for_a_local_drafter(tiny_llama: Path) -> None:
    with pytest.raises(StartError, match="--project-features is for a drafter in another process"):
        settings_for(tiny_llama, "--drafter", "local:x", "--project-features", "on")


def test_a_local_one_gets_what_the_verifier_knows(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry()
    install(monkeypatch, entry)
    made = port(tiny_llama, "--drafter", "local:some/where:else", "--device", "cpu")
    assert cast(str, made) == "the port"
    shape = target_of(tiny_llama).shape
    assert entry.setups == [
        LocalSetup("some/where:else", str(tiny_llama), shape, "float32", "cpu", False)
    ]
    assert port(tiny_llama, "--drafter", "local:x", "--speculation", "off") is None


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ((), "no local drafter is installed"),
        ((Entry(load_error=ModuleNotFoundError("No module named 'x'")),), "No module named 'x'"),
        ((Entry(error=StartError("cannot read it.")),), "--drafter: cannot read it."),
    ],
)
def test_what_cannot_be_had_stops_the_start_with_one_sentence(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, entries: tuple[Entry, ...], sentence: str
) -> None:
    install(monkeypatch, *entries)
    with pytest.raises(StartError) as caught:
        port(tiny_llama, "--drafter", "local:x")
    assert str(caught.value).startswith("--drafter: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("value", ["nowhere", "host:port", "local:"])
def test_what_is_no_drafter_is_named(tiny_llama: Path, value: str) -> None:
    with pytest.raises(StartError, match="--drafter: must "):
        settings_for(tiny_llama, "--drafter", value)
