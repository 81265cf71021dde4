"""A fake gateway, and prompt files."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_gateway import Behaviour, fake_gateway


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    with fake_gateway(behaviour) as url:
        yield url


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[..., str]:
    def write(*texts: str) -> str:
        path = tmp_path / "prompts.jsonl"
        lines = (json.dumps({"question_id": i, "turns": [t]}) for i, t in enumerate(texts, 81))
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


@pytest.fixture
def vllm_python(tmp_path: Path) -> str:
    """A Python whose `vllm` is the fake one."""
    return python_with(tmp_path, Path(__file__).with_name("fake_vllm"))


@pytest.fixture
def llama_python(tmp_path: Path) -> str:
    """A Python whose `llama_cpp` is the fake one."""
    return python_with(tmp_path, Path(__file__).with_name("fake_llama"))


def python_with(folder: Path, packages: Path) -> str:
    path = folder / f"python-with-{packages.name}"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)
