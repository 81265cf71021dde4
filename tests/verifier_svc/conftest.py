"""Fixtures of the tests of engine and drafting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.coordinator_fixtures import Recorder, drafting_with
from tests.support.engine_fixtures import LENGTH, PROMPTS, Texts
from tests.support.running_engine import greedy_texts, target_of
from tests.support.scripted_drafter import Propose, ScriptedDrafter, welcome_for
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.speculation.coordinator import DraftCoordinator


@pytest.fixture(scope="module")
def texts(tiny_llama: Path) -> Texts:
    """What transformers generates, end tokens ignored."""
    return greedy_texts(tiny_llama, PROMPTS, LENGTH)


@pytest.fixture
def drafter(tiny_llama: Path) -> Callable[..., ScriptedDrafter]:
    def make(propose: Propose, **options: Any) -> ScriptedDrafter:
        return ScriptedDrafter(welcome_for(target_of(tiny_llama)), propose, **options)

    return make


@pytest.fixture
def port() -> Recorder:
    return Recorder()


@pytest.fixture
def drafting(port: Recorder) -> DraftCoordinator:
    return drafting_with(port, DraftLengthController(8, fixed=3))
