"""A GGUF target from the cache is the one that its file holds."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from specserve.model_source import ModelSource
from tests.support.tiny_gguf import END, write_tiny_gguf
from verifier_svc.model.loading.gguf_unpack import unpacked_target
from verifier_svc.model.loading.loader import TargetError, load_tokenizer_files, read_config
from verifier_svc.model.target import Target, load_target
from verifier_svc.parallel.weights_digest import weights_digest


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "Tiny-F32.gguf")


def facts(config: Any) -> dict[str, Any]:
    """All that it says but where it came from."""
    return {**config.to_dict(), "_name_or_path": None, "architectures": None}


def load(source: ModelSource, dtype: torch.dtype) -> Target:
    return load_target(source, dtype=dtype, device=torch.device("cpu"), trust_remote_code=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_target(
    file: Path, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = ModelSource.parse(str(file))
    kept = unpacked_target(packed, dtype, tmp_path)
    assert kept.unpacked is not None
    monkeypatch.delattr("verifier_svc.model.loading.gguf_unpack._write")  # once is enough
    assert unpacked_target(packed, dtype, tmp_path) == kept

    for fused in ("fuse", "pack_linears"):  # the weights as they were loaded
        monkeypatch.setattr(f"verifier_svc.model.target.{fused}", lambda module: None)
    one, other = load(packed, dtype), load(kept, dtype)
    expected, got = (dict(target.model.named_parameters()) for target in (one, other))
    assert list(got) == list(expected)
    for name, weight in got.items():
        assert weight.dtype == dtype
        assert torch.equal(weight, expected[name]), name
    assert other.model.get_output_embeddings().weight is got["model.embed_tokens.weight"]
    assert (other.name, other.fingerprint) == (one.name, one.fingerprint)
    assert other.eos_token_ids == one.eos_token_ids == {END}
    assert other.model.generation_config.to_dict() == one.model.generation_config.to_dict()
    assert facts(other.config) == facts(one.config)


def test_ranks_that_read_either_agree(file: Path, tmp_path: Path) -> None:
    packed = ModelSource.parse(str(file))
    kept = unpacked_target(packed, torch.float32, tmp_path)
    identities = [
        weights_digest(source, read_config(source, trust_remote_code=False), torch.float32)
        for source in (packed, kept)
    ]
    assert identities[0] == identities[1]


def test_it_has_the_same_tokenizer(file: Path, tmp_path: Path) -> None:
    packed = ModelSource.parse(str(file))
    kept = unpacked_target(packed, torch.float32, tmp_path)
    one, other = (
        load_tokenizer_files(source, trust_remote_code=False) for source in (packed, kept)
    )
    assert set(one) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert other == one


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow over 4 KB: to the writer that is a disk without space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_only_the_cache(file: Path, tmp_path: Path) -> None:
    source = ModelSource.parse(str(file))
    with full_disk():
        assert unpacked_target(source, torch.float32, tmp_path) == source
    assert [path.suffix for path in (tmp_path / "targets").iterdir()] == [".lock"]
    assert load(source, torch.float32).eos_token_ids == {END}


def test_a_cache_that_cannot_be_a_folder_costs_only_itself(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    source = ModelSource.parse(str(file))
    assert unpacked_target(source, torch.float32, tmp_path / "cache") == source


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(TargetError, match=r"^target: damaged cannot be loaded: "):
        unpacked_target(ModelSource.parse(str(path)), torch.float32, tmp_path / "cache")
