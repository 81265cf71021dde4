import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from loadtests.arrival import __main__ as arrival
from loadtests.arrival.streams import Stream
from loadtests.common.result import RequestFailed
from tests.support.fake_gateway import Behaviour

Measure = Callable[..., Coroutine[Any, Any, int]]


@pytest.fixture
def measure(
    url: str,
    behaviour: Behaviour,
    write_prompts: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> Measure:
    """Two streams with a chunk each 5 ms, 20 ms while the prompt of 300 is prefilled in 0.1 s."""
    behaviour.tokenized = lambda text: [0] * len(text)
    behaviour.prefill, behaviour.step = 1 / 3000, 0.005
    monkeypatch.setattr(arrival, "REST", 0.0)
    path = write_prompts("a", "b", "c")

    async def run(*arguments: str) -> int:
        sizes = ("--streams", "2", "--tokens", "300", "--repeats", "1", "--before", "20")
        command = ["arrival", "--url", url, "--prompts", path, *sizes, *arguments]
        monkeypatch.setattr(sys, "argv", command)
        return await arrival.main()

    return run


async def test_streams_are_slower_while_a_prompt_is_prefilled(
    measure: Measure, behaviour: Behaviour, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "arrival.json"
    assert await measure("--speculation", "off", "--output", str(output)) == 0
    assert "1 prompts of 300 to 300 tokens arrived" in " ".join(capsys.readouterr().out.split())
    document = json.loads(output.read_text())
    summary = document["summary"]
    assert 1.7 < summary["p50"]["median"] < 8
    assert summary["first_token"]["p50"] >= 0.1
    (trial,) = document["runs"]
    # All tokens of both but the first of each, and at least that of the one that was later.
    assert 18 <= len(trial["before"]) < 60
    assert {body["speculation"] for body in behaviour.bodies} == {False}
    assert [body["max_tokens"] for body in behaviour.bodies] == 2 * [6144, 6144, 4]


async def test_a_stream_that_ends_too_early_is_no_measurement(measure: Measure) -> None:
    with pytest.raises(RequestFailed, match="raise --max-tokens"):
        await measure("--max-tokens", "21", "--speculation", "off")


async def test_a_refused_stream_says_why(measure: Measure, behaviour: Behaviour) -> None:
    behaviour.refused = "b"
    with pytest.raises(RequestFailed, match="This prompt is refused"):
        await measure()


def test_tokens_share_the_gap_of_their_chunk() -> None:
    stream = Stream(2, lambda: None)
    stream.chunks = [(0.0, 1), (1.0, 2), (3.0, 4), (4.0, 1)]
    assert stream.times(0.0, 3.5, whole=True) == [0.5, 0.5, *[0.5] * 4]
    assert stream.times(1.5, 3.0, whole=False) == [0.5] * 4
    assert stream.times(2.9, 3.1, whole=False) == [*[0.5] * 4, 1.0]
