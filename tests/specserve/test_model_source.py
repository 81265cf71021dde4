"""What users write for a target."""

from pathlib import Path

import pytest

from specserve.model_source import ModelSource


def test_a_hugging_face_id() -> None:
    source = ModelSource.parse("org/Model-135M")
    assert source == ModelSource("org/Model-135M")
    assert source.name == "org/Model-135M"
    assert source.arguments == {}


def test_a_folder(tmp_path: Path) -> None:
    source = ModelSource.parse(f"{tmp_path}/")
    assert source == ModelSource(str(tmp_path))
    assert source.arguments == {}


def test_a_folder_is_preferred_to_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelSource.parse("org/model").location == "org/model"


def test_a_gguf_file_is_its_folder_and_its_name(tmp_path: Path) -> None:
    file = tmp_path / "Model-Q4_1.gguf"
    file.touch()
    source = ModelSource.parse(str(file))
    assert source == ModelSource(str(tmp_path), "Model-Q4_1.gguf")
    assert source.name == "Model-Q4_1"
    assert source.arguments == {"gguf_file": "Model-Q4_1.gguf"}


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert ModelSource.parse("~/model").location == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "target: give a Hugging Face id, a folder, or a .gguf file."),
        ("missing.gguf", "target: there is no file missing.gguf."),
        ("/no/such/folder", "target: there is no folder /no/such/folder."),
        ("./model", "target: there is no folder ./model."),
        ("~/no-such-folder", "target: there is no folder ~/no-such-folder."),
        ("~no-such-user/model", "target: there is no folder ~no-such-user/model."),
    ],
)
def test_what_does_not_exist_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence is compared
        ModelSource.parse(text)
    assert str(error.value) == sentence
