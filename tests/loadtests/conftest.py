"""A fake gateway, and prompt files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.loadtests.fake_gateway import Behaviour, fake_gateway


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
