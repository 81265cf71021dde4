from pathlib import Path

import pytest

from loadtests.common.prompts import load_prompts
from specserve.settings import StartError


def write(folder: Path, text: str) -> str:
    path = folder / "prompts.jsonl"
    path.write_text(text)
    return str(path)


def test_limit_names_and_turns(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question_id": 81, "turns": ["a", "b"]}\n\n{"turns": ["c"]}\n{oops\n')
    first, second = load_prompts(path, 2)
    assert (first.name, first.turns, first.text) == ("81", ("a", "b"), "a")
    assert (second.name, second.text) == ("3", "c")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{oops", "is not JSON"),
        ("[]", "has no `turns`"),
        ("{}", "has no `turns`"),
        ('{"turns": []}', "has no `turns`"),
        ('{"turns": "a"}', "has no `turns`"),
        ('{"turns": ["a", ""]}', "has no `turns`"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(StartError, match=f"line 2 of .*{sentence}"):
        load_prompts(write(tmp_path, f'{{"turns": ["a"]}}\n{line}\n'))


def test_files_that_are_not_there_or_empty_or_binary(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        load_prompts(str(tmp_path / "nowhere"))
    with pytest.raises(StartError, match="holds no prompt"):
        load_prompts(write(tmp_path, "\n"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(StartError, match="UTF-8"):
        load_prompts(str(tmp_path / "binary"))
