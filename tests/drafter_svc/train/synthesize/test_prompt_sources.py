"""Prompts from files and data sets, and their place among those of one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.train.synthesize.prompt_sources import Plan, Prompt, open_prompts, parse_prompt


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": " Hi "}, ("Hi",)),
        ({"question": "Why?", "answer": "Because."}, ("Why?",)),
        ({"turns": ["a", "b"], "category": "x"}, ("a", "b")),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "no"},
                       {"role": "user", "content": "b"}]}, ("a", "b")),
        ({"prompt": [{"role": "user", "content": "a"}]}, ("a",)),
    ],
)  # fmt: skip
def test_the_users_side_is_taken(row: dict[str, Any], turns: tuple[str, ...]) -> None:
    assert parse_prompt(row, "s") == Prompt("s", (), turns)


def test_a_system_message_is_kept() -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"messages": [system, {"role": "user", "content": "a"}]}
    assert parse_prompt(row, "s") == Prompt("s", (system,), ("a",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "no JSON object"),
        ({"text": "x"}, 'no "prompt", "question", "turns" or "messages"'),
        ({"turns": []}, "no user turn"),
        ({"turns": "  "}, "no texts"),
        ({"turns": ["a", 3]}, "no texts"),
        ({"prompt": 3}, "no texts"),
        ({"messages": [{"role": "user"}]}, 'lack "role" or "content"'),
        ({"messages": 3}, 'lack "role" or "content"'),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no texts"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no user turn"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty one"),
    ],
)
def test_a_row_that_is_no_prompt_says_why(row: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_prompt(row, "s")


def test_a_file_is_read_line_by_line_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    lines = [json.dumps({"prompt": f"prompt {n} é"}, ensure_ascii=False) for n in range(50)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    prompts = open_prompts(str(path))
    assert (prompts.name, len(prompts)) == ("some.jsonl", 50)
    for index in (49, 0, 17):
        assert prompts[index] == Prompt("some.jsonl", (), (f"prompt {index} é",))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', r"bad\.jsonl:2 is no prompt: it is not JSON"),
        (b'{"prompt": "a"}\n\xff\xfe\n', r"bad\.jsonl:2 is no prompt: it is not JSON"),
        (b'\n{"prompts": "a"}\n', r"bad\.jsonl:2 is no prompt: it has no"),
        (b"", r"bad\.jsonl is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        open_prompts(str(path))


def test_a_missing_file_is_not_taken_for_a_data_set() -> None:
    with pytest.raises(ValueError, match=r"there is no file nowhere\.jsonl"):
        open_prompts("nowhere.jsonl")


def test_without_the_library_a_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="no file owner/name, and a data set needs the datasets"):
        open_prompts("owner/name")


def test_data_sets_are_opened_by_id_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        calls.append((name, config, split))
        if name == "owner/lost":
            raise RuntimeError("no such data set\nmore")
        return [{"text": "a"}] if name == "owner/texts" else [{"question": "Why?"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert open_prompts("owner/name")[0] == Prompt("owner/name", (), ("Why?",))
    open_prompts("owner/name:test")
    open_prompts("owner/name:main:test")
    assert calls == [
        ("owner/name", None, "train"),
        ("owner/name", None, "test"),
        ("owner/name", "main", "test"),
    ]
    for text, reason in (
        ("owner/lost", "cannot be loaded: no such data set$"),
        ("owner/texts", "has no prompts: it has no"),
        ("a:b:c:d", "is not ID"),
    ):
        with pytest.raises(ValueError, match=reason):
            open_prompts(text)


class Numbered:
    """A set of prompts that are told apart by their text."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Prompt:
        assert 0 <= index < self._size
        return Prompt(self.name, (), (str(index),))


@given(own=st.integers(0, 40), sizes=st.lists(st.integers(1, 40), max_size=3))
def test_every_prompt_comes_once_and_evenly(own: int, sizes: list[int]) -> None:
    if not own + sum(sizes):
        return
    plan = Plan(own, [Numbered(str(n), size) for n, size in enumerate(sizes)])
    prompts = [plan[index] for index in range(len(plan))]
    assert [p for p in prompts if p.source == "self"] == [Prompt("self")] * own
    given_ones = [(p.source, *p.turns) for p in prompts if p.source != "self"]
    assert given_ones == [(str(n), str(i)) for n, size in enumerate(sizes) for i in range(size)]
    half = sum(p.source == "self" for p in prompts[: len(prompts) // 2])
    assert abs(half - own / 2) <= 1
    assert list(plan.sources()) == [(str(n), size) for n, size in enumerate(sizes)]
