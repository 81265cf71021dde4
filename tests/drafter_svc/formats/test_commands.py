"""`python -m drafter_svc.formats`: what it prints and how it exits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_svc.formats.__main__ import main
from drafter_svc.formats.checkpoint import load_checkpoint, save_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.model.config import CheckpointError
from drafter_svc.train.target.target import load_target
from tests.support.tiny_drafter import tiny_config, tiny_drafter

ALIKE = {"hidden_size": 32, "target_hidden_size": 32, "vocab_size": 97, "aux_layers": (1, 2, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config(draft_temperature=0.7, training={"answer_tokens": 12345})
    save_checkpoint(tmp_path / "drafter", tiny_drafter(config), torch.arange(40) + 7)
    return tmp_path / "drafter"


def foreign(folder: Path) -> None:
    """Take away what only our own files say."""
    values = json.loads((folder / "config.json").read_text())
    del values["holdcourse"], values["norm_before_residual"]
    (folder / "config.json").write_text(json.dumps(values))


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    table = {name: value.strip() for name, value in rows.items()}
    loaded = load_checkpoint(folder, dtype=torch.float32)
    assert table["hash"] == loaded.checkpoint_hash
    parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
    assert table["parameters"].startswith(f"{parameters:,} in bfloat16")
    assert table["vocabulary"] == "40 of 64"
    assert table["aux layers"] == "1, 2, 3 (input to layer)"
    assert (table["fc_norm"], table["norm_before_fc"]) == ("yes", "no")
    assert (table["draft temperature"], table["target"]) == ("0.7", "feed")
    assert table["trained on"] == "12,345 answer tokens"


def test_inspect_shows_what_stays_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(folder)
    assert main(["inspect", str(folder)]) == 0
    assert "not usable" in (out := capsys.readouterr().out)
    assert "--norm-before-residual" in out
    arguments = ["--norm-before-residual", "false", "--aux-convention", "output"]
    assert main(["inspect", str(folder), *arguments]) == 0
    out = capsys.readouterr().out
    assert "2, 3, 4 (input to layer)" in out
    assert "not named" in out


def test_convert_there_and_back(folder: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    arguments = ["--format", "speculators", "--verifier", "some/target"]
    assert main(["convert", str(folder), str(there), *arguments]) == 0
    assert main(["convert", str(there), str(back), "--format", "specforge"]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()


def drafter_of(folder: Path, **changes: Any) -> Path:
    """A drafter of the tiny target's shapes, as another project would write it."""
    config = tiny_config(**(ALIKE | changes))
    save_checkpoint(folder, tiny_drafter(config), torch.arange(40) + 7)
    foreign(folder)
    return folder


def test_convert_names_the_target(tmp_path: Path, tiny_llama: Path) -> None:
    folder, out = drafter_of(tmp_path / "drafter"), tmp_path / "out"
    arguments = ["convert", str(folder), str(out), "--format", "specforge"]
    given = ["--norm-before-residual", "true", "--aux-convention", "input"]
    assert main([*arguments, *given]) == 2  # nobody says which target
    temperature = ["--draft-temperature", "0.5"]
    assert main([*arguments, *given, *temperature, "--target", str(tiny_llama)]) == 0
    config = load_checkpoint(out, dtype=torch.float32).config
    assert config.target_fingerprint == load_target(str(tiny_llama)).fingerprint
    assert config.norm_before_residual
    assert config.draft_temperature == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 96}, "vocabulary is 96 in the checkpoint and 97 in the target"),
        ({"hidden_size": 16, "target_hidden_size": 16}, "target_hidden_size is 16"),
        ({"aux_layers": (1, 2, 5)}, "aux layer 5 is not among the target's 4"),
    ],
)
def test_convert_does_not_name_a_target_that_it_does_not_fit(
    changes: dict[str, Any],
    words: str,
    tmp_path: Path,
    tiny_llama: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = drafter_of(tmp_path / "drafter", **changes), tmp_path / "out"
    given = ["--norm-before-residual", "false", "--aux-convention", "input"]
    command = ["convert", str(folder), str(out), "--format", "specforge"]
    assert main([*command, *given, "--target", str(tiny_llama)]) == 1
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_what_may_be_meant_otherwise_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(vocab_size=96)
    save_checkpoint(tmp_path / "drafter", tiny_drafter(config), torch.arange(40) * 2)
    command = ["convert", str(tmp_path / "drafter"), str(tmp_path / "out"), "--format", "specforge"]
    assert main(command) == 0
    assert "stands for target id 2j" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "stands for target id 2j" in capsys.readouterr().out


def test_the_command_that_an_error_names_is_one(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "drafter", tmp_path / "out"
    save_checkpoint(folder, tiny_drafter(tiny_config(**ALIKE)), torch.arange(40) + 7)
    values = json.loads((folder / "config.json").read_text())
    del values["holdcourse"]
    values["norm_before_residual"] = True
    del values["eagle_config"]
    (folder / "config.json").write_text(json.dumps(values))
    given = ("--aux-layers", "1,2,3")
    with pytest.raises(CheckpointError, match="by fingerprint") as refused:
        load_checkpoint(folder, dtype=torch.float32, given=UserOverrides((1, 2, 3)))
    named = str(refused.value).split("`")[1].split()
    assert named[:4] == [".venv/bin/python", "-m", "drafter_svc.formats", "convert"]
    paths = {"PATH": str(folder), "OUT": str(out), "TARGET": str(tiny_llama)}
    assert main([paths.get(word, word) for word in named[3:]] + [*given]) == 0
    assert "specforge" in capsys.readouterr().out
    assert load_checkpoint(out, dtype=torch.float32).config.target_fingerprint


def test_a_target_is_no_drafter(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_llama)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{tiny_llama}: this is no EAGLE drafter: the weights have no fc.")
    with pytest.raises(CheckpointError, match="this is no EAGLE drafter"):
        load_checkpoint(tiny_llama, dtype=torch.float32)


def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert main(["convert", str(folder), str(tmp_path), "--format", "speculators"]) == 2
    assert main(["validate", str(folder), "--target", str(tmp_path / "nothing")]) == 2
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:700])
    assert main(["inspect", str(folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "--verifier" in lines[1]
    assert "damaged or cut short" in lines[3]
    for arguments in (["--aux-layers", "1,x"], ["--norm-before-residual", "maybe"]):
        with pytest.raises(SystemExit, match="2"):
            main(["inspect", str(folder), *arguments])


def test_another_target_exits_with_1(folder: Path, tiny_llama: Path) -> None:
    assert main(["validate", str(folder), "--target", str(tiny_llama)]) == 1
