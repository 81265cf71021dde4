"""`python -m drafter_svc.formats`: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
import torch

from drafter_svc.checkpoint import load_checkpoint, save_checkpoint
from drafter_svc.formats.__main__ import main
from drafter_svc.train.target import load_target
from tests.drafter_svc.tiny import tiny_config, tiny_drafter


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


def test_convert_names_the_target(folder: Path, tmp_path: Path, tiny_llama: Path) -> None:
    foreign(folder)
    out = tmp_path / "out"
    arguments = ["convert", str(folder), str(out), "--format", "specforge"]
    given = ["--norm-before-residual", "true", "--aux-convention", "input"]
    assert main([*arguments, *given]) == 2  # nobody says which target
    temperature = ["--draft-temperature", "0.5"]
    assert main([*arguments, *given, *temperature, "--target", str(tiny_llama)]) == 0
    config = load_checkpoint(out, dtype=torch.float32).config
    assert config.target_fingerprint == load_target(str(tiny_llama)).fingerprint
    assert config.norm_before_residual
    assert config.draft_temperature == 0.5


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
