import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loadtests.common.client import Served
from loadtests.common.result import RequestFailed
from loadtests.peers import hf_export
from loadtests.peers.transformers_child import Reference
from loadtests.peers.transformers_peer import TransformersPeer
from specserve.settings import StartError


class FakePeer:
    """Saves nothing but a file, and counts."""

    fingerprint = "f" * 64
    starts = 0
    full = False

    def check(self, target: str, served: Served) -> None:
        TransformersPeer.check(self, target, served)  # type: ignore[arg-type]

    async def save(self, target: str, folder: str) -> None:
        Path(folder).mkdir()
        Path(folder, "config.json").write_text("{}")
        if self.full:
            raise RequestFailed("No space left on device.")


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> FakePeer:
    peer = FakePeer()

    @asynccontextmanager
    async def running(*_: str) -> AsyncGenerator[FakePeer]:
        peer.starts += 1
        yield peer

    monkeypatch.setattr(TransformersPeer, "running", running)
    return peer


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"1")
    return path


def served(fingerprint: str = "f" * 64) -> Served:
    return Served("tiny", "bfloat16", fingerprint, {})


async def test_an_export_is_made_once_for_each_file_and_dtype(
    peer: FakePeer, gguf: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = await hf_export.hugging_face(str(gguf), served(), "bfloat16", cache)
    assert await hf_export.hugging_face(str(gguf), served(), "bfloat16", cache) == first
    assert peer.starts == 1
    assert {path.name for path in Path(first).iterdir()} == {"config.json", hf_export.RECORD}
    others = {await hf_export.hugging_face(str(gguf), served(), "float32", cache)}
    gguf.write_bytes(b"22")
    others.add(await hf_export.hugging_face(str(gguf), served(), "bfloat16", cache))
    assert len(others | {first}) == 3
    assert len(list(cache.iterdir())) == 3  # nothing temporary is left


async def test_another_model_is_refused_even_where_it_has_been_exported(
    peer: FakePeer, gguf: Path, tmp_path: Path
) -> None:
    await hf_export.hugging_face(str(gguf), served(), "bfloat16", tmp_path)
    with pytest.raises(StartError, match="is not the model that is served"):
        await hf_export.hugging_face(str(gguf), served(fingerprint="0" * 64), "bfloat16", tmp_path)


async def test_an_export_that_breaks_off_is_none(
    peer: FakePeer, gguf: Path, tmp_path: Path
) -> None:
    peer.full, cache = True, tmp_path / "cache"
    with pytest.raises(StartError, match=r"cannot be exported to .*No space left on device"):
        await hf_export.hugging_face(str(gguf), served(), "bfloat16", cache)
    assert list(cache.iterdir()) == []
    with pytest.raises(StartError, match="--peer-target: target: there is no file"):
        await hf_export.hugging_face("/nowhere.gguf", served(), "bfloat16", cache)


async def test_a_folder_is_loaded_where_it_is(peer: FakePeer, tmp_path: Path) -> None:
    assert await hf_export.hugging_face(
        str(tmp_path), served(), "bfloat16", tmp_path / "cache"
    ) == str(tmp_path)
    assert peer.starts == 1


def test_what_is_saved_is_the_model_itself(tiny_llama: Path, tmp_path: Path) -> None:
    reference = Reference.load(str(tiny_llama), "float32")
    reference.save(str(tiny_llama), str(tmp_path))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert Reference(saved).fingerprint == reference.fingerprint
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert (tmp_path / "tokenizer.json").exists()
