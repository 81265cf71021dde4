"""A target without its layers is that target at both ends."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from drafter_svc.train.target.target import load_target
from tests.support.tiny_llama import write_tiny_llama, write_tiny_tokenizer


def assert_same_ends(folder: Path) -> None:
    whole, ends = load_target(str(folder)), load_target(str(folder), layers=False)
    assert ends.fingerprint == whole.fingerprint
    assert torch.equal(ends.head, whole.head)
    assert torch.equal(ends.embedding.weight, whole.embedding.weight)
    assert torch.equal(ends.final_norm, whole.final_norm)
    assert len(ends.model.base_model.layers) == 0


def test_untied_embeddings(tiny_llama: Path) -> None:
    assert_same_ends(tiny_llama)


def test_tied_embeddings(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=97, num_hidden_layers=4, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    write_tiny_tokenizer(tmp_path)
    assert_same_ends(tmp_path)
    ends = load_target(str(tmp_path), layers=False)
    assert ends.head is ends.embedding.weight


def test_shards(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        save_file({n: tensors[n] for n in names}, folder / f"part-{number}.safetensors")
        weight_map |= dict.fromkeys(names, f"part-{number}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_ends(folder)


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("norm", "scale"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(ValueError, match="without its layers"):
        load_target(str(folder), layers=False)
