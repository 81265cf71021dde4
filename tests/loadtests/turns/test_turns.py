import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.common.result import RequestFailed
from loadtests.turns import __main__ as turns
from loadtests.turns.conversation import FOLLOW_UP
from tests.support.fake_gateway import Behaviour


async def test_the_second_turn_is_compared_with_a_cold_one(
    url: str,
    behaviour: Behaviour,
    write_prompts: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour.tokenized = lambda text: [0] * len(text)
    behaviour.prefill = 3e-4
    output = tmp_path / "turns.json"
    arguments = ["--url", url, "--prompts", write_prompts("one two", "three"), "--pairs", "2"]
    sizes = ["--history", "200", "--max-tokens", "10", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["turns", *arguments, *sizes])
    assert await turns.main() == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "The same tokens were cached with speculation and without in 2 of 2 pairs." in text
    assert "equal texts │ 2 of 2 │ 2 of 2" in text
    document = json.loads(output.read_text())
    assert document["complete"]
    off, on = document["summary"]["modes"]
    assert (off["speculation"], on["speculation"]) == (False, True)
    for mode in (off, on):
        assert mode["cached_tokens"] == [200, 200]
        assert mode["prompt_tokens"] == [200 + len(FOLLOW_UP)] * 2
        assert mode["first_token"]["median"] < 0.8
        assert mode["acceptance_length"]["median"] == 1
    assert off["drafts"] == [[0, 0], [0, 0]]
    # Three drafts of three tokens, of which two are accepted, in each of two conversations.
    assert on["drafts"] == [[12, 6], [12, 6]]
    # A cold request shares its salt with none.
    asked = [(body["cache_salt"], len(body["messages"])) for body in behaviour.bodies]
    assert len({salt for salt, _ in asked}) == 2 * 6
    # Warm-up apart, the cold request is as often before the second turn as after it.
    salts = [salt for salt, _ in asked]
    after = [salts[i] == salts[i + 1] for i in range(6, len(salts), 3)]
    assert sorted(after) == [False, False, True, True]


async def test_a_refused_request_ends_it(
    url: str,
    behaviour: Behaviour,
    write_prompts: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behaviour.refused = FOLLOW_UP
    monkeypatch.setattr(sys, "argv", ["turns", "--url", url, "--prompts", write_prompts("one")])
    with pytest.raises(RequestFailed, match="refused"):
        await turns.main()
