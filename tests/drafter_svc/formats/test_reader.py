"""Every layout of one drafter comes back as the same drafter; guesses are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.reader import read_raw_checkpoint
from drafter_svc.formats.writer import write_specforge, write_speculators
from drafter_svc.model.config import CheckpointError
from tests.support.foreign_checkpoints import GIVEN, IDS, check_same, put, refusal, renamed, written


def test_safeailab(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, fc_norm=False, norm_output=False)
    for name in ("eagle_config", "target_hidden_size", "fc_norm", "norm_output"):
        del values[name]
    del values["norm_before_fc"], values["norm_before_residual"]
    values["architectures"] = ["LlamaForCausalLM"]
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    torch.save(tensors, folder / "pytorch_model.bin")
    assert read_raw_checkpoint(folder).layout == "SafeAILab"
    given = UserOverrides((2, 3, 5), None, False, "feed")
    check_same(folder, tmp_path / "original", given)


def test_sglang_aliases(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    aliases = dict(enumerate(("low", "mid", "high")))
    for index, alias in aliases.items():
        tensors[f"aux_norm_{alias}.weight"] = tensors.pop(f"fc_norm.{index}.weight")
    values["use_aux_norm"] = values.pop("fc_norm")
    values["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [1, 2, 4]
    folder = put(tmp_path / "theirs", tensors, values)
    assert "--aux-convention" in refusal(folder)
    check_same(folder, tmp_path / "original", UserOverrides(None, "output", None, "feed"))


def test_vllm_with_packed_projections(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, attention_bias=True, num_hidden_layers=2)
    tensors["draft_id_to_target_id"] = tensors.pop("d2t")
    del tensors["t2d"]
    tensors = renamed(tensors, lambda name: name.replace("midlayer.", "layers.0."))
    for index in (0, 1):
        attention, mlp = f"layers.{index}.self_attn", f"layers.{index}.mlp"
        for end in ("weight", "bias"):
            parts = [tensors.pop(f"{attention}.{p}_proj.{end}") for p in "qkv"]
            tensors[f"{attention}.qkv_proj.{end}"] = torch.cat(parts)
        parts = [tensors.pop(f"{mlp}.{p}_proj.weight") for p in ("gate", "up")]
        tensors[f"{mlp}.gate_up_proj.weight"] = torch.cat(parts)
    head = ("lm_head", "draft_id")
    tensors = renamed(tensors, lambda name: name if name.startswith(head) else f"model.{name}")
    values["architectures"] = ["Eagle3LlamaForCausalLM"]
    folder = put(tmp_path / "theirs", tensors, values)
    assert read_raw_checkpoint(folder).layout == "vLLM"
    check_same(folder, tmp_path / "original")


def test_automodel(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, own_embeddings=True)
    bare = ("lm_head", "d2t", "t2d")
    tensors = renamed(
        renamed(tensors, lambda name: name.replace("midlayer.", "layers.0.")),
        lambda name: name if name.startswith(bare) else f"model.{name}",
    )
    assert "model.fc_norm.1.weight" in tensors
    values |= {"architectures": ["LlamaEagle3DraftModel"], "num_aux_hidden_states": 3}
    del values["eagle_config"]
    folder = put(tmp_path / "theirs", tensors, values)
    assert read_raw_checkpoint(folder).layout == "NeMo Automodel"
    assert "--aux-layers" in refusal(folder)
    check_same(folder, tmp_path / "original", UserOverrides((2, 3, 5), target_fingerprint="feed"))


def test_speculators(tmp_path: Path) -> None:
    written(tmp_path, num_hidden_layers=2, qk_norm=True, norm_before_residual=True)
    ours = load_checkpoint(tmp_path / "original", dtype=torch.float32)
    folder = tmp_path / "theirs"
    write_speculators(folder, ours.module, ours.target_ids, "some/target")
    assert read_raw_checkpoint(folder).layout == "speculators"
    check_same(folder, tmp_path / "original", UserOverrides())
    values = json.loads((folder / "config.json").read_text())
    assert values["speculators_config"]["verifier"]["name_or_path"] == "some/target"
    assert "layers.0.hidden_norm.weight" in safetensors.torch.load_file(
        folder / "model.safetensors"
    )
    for changes, words in [
        ({"transformer_layer_config": values["transformer_layer_config"] | {"x": 1}}, "know: x"),
        ({"speculators_model_type": "eagle"}, "speculators_model_type"),
        ({"norm_before_residual": None, "holdcourse": None}, "--norm-before-residual"),
        ({"eagle_aux_hidden_state_layer_ids": None}, "--aux-layers"),
        ({"norm_after_all": True}, "norm_after_all"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"speculators_config": {"algorithm": "dflash"}}, "algorithm"),
    ]:
        (folder / "config.json").write_text(json.dumps(values | changes))
        given = GIVEN if "holdcourse" in changes else UserOverrides()
        assert words in refusal(folder, given)


def test_shards(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    folder = put(tmp_path / "theirs", tensors, values)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for part, chosen in enumerate((names[:5], names[5:])):
        shard = {name: tensors[name] for name in chosen}
        safetensors.torch.save_file(shard, folder / f"model-{part}.safetensors")
    index = {name: f"model-{int(name in names[5:])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    check_same(folder, tmp_path / "original")
    (folder / "model-1.safetensors").unlink()
    assert "model-1.safetensors" in refusal(folder)


def test_a_full_vocabulary_needs_no_map(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, draft_vocab_size=64)
    del tensors["d2t"], tensors["t2d"], values["draft_vocab_size"]
    check_same(put(tmp_path / "theirs", tensors, values), tmp_path / "original")


def test_a_cut_vocabulary_needs_its_map(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    del tensors["d2t"], tensors["t2d"]
    assert "no tensor d2t" in refusal(put(tmp_path / "theirs", tensors, values))


def test_a_tied_head(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, draft_vocab_size=64, own_embeddings=True)
    head = tensors.pop("lm_head.weight")
    values["tie_word_embeddings"] = True
    folder = put(tmp_path / "theirs", tensors, values)
    module = load_checkpoint(folder, dtype=torch.float32, given=GIVEN).module
    assert torch.equal(module.lm_head.weight, module.embed_tokens.weight)
    write_specforge(tmp_path / "again", module, torch.arange(64))
    untied = load_checkpoint(tmp_path / "again", dtype=torch.float32).module
    assert torch.equal(untied.lm_head.weight, module.embed_tokens.weight)
    # A head that is there was not tied when it was saved: the key is the target's.
    check_same(put(folder, tensors | {"lm_head.weight": head}, values), tmp_path / "original")
    del tensors["embed_tokens.weight"]
    loaded = load_checkpoint(put(folder, tensors, values), dtype=torch.float32, given=GIVEN)
    assert not loaded.config.own_head


def test_a_drafter_narrower_than_its_target(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, target_hidden_size=24, own_embeddings=True)
    folder = put(tmp_path / "theirs", tensors, values)
    check_same(folder, tmp_path / "original")
    module = load_checkpoint(folder, dtype=torch.float32, given=GIVEN).module
    assert module.fuse(torch.randn(5, 72)).shape == (5, 16)
    del tensors["embed_tokens.weight"]
    assert "embed_tokens.weight" in refusal(put(folder, tensors, values))
    with pytest.raises(CheckpointError, match="width differs"):
        write_speculators(tmp_path / "out", module, IDS, "some/target")


def test_bias_without_one_on_the_output_projection(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, attention_bias=True)
    del tensors["midlayer.self_attn.o_proj.bias"]
    folder = put(tmp_path / "theirs", tensors, values)
    assert "o_proj.bias" in refusal(folder)
    values["qkv_bias"] = True
    del values["attention_bias"]
    module = load_checkpoint(put(folder, tensors, values), dtype=torch.float32, given=GIVEN).module
    assert not module.midlayer.self_attn.o_proj.bias.any()
    assert module.midlayer.self_attn.q_proj.bias.any()


def test_layers_behind_the_first_have_one_norm_of_their_input(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, num_hidden_layers=2)
    folder = tmp_path / "theirs"
    del tensors["layers.1.input_layernorm.weight"]  # as SGLang
    check_same(put(folder, tensors, values), tmp_path / "original")
    tensors["layers.1.input_layernorm.weight"] = tensors["layers.1.hidden_norm.weight"] + 1
    assert "differ" in refusal(put(folder, tensors, values))
    del tensors["layers.1.hidden_norm.weight"], tensors["layers.1.input_layernorm.weight"]
    assert "no tensor layers.1.input_layernorm.weight" in refusal(put(folder, tensors, values))


@pytest.mark.parametrize(
    ("toggles", "switched_off", "words"),
    [
        ({}, {"fc_norm": False}, "add fc_norm: true"),
        ({"fc_norm": False, "norm_before_fc": True}, {"norm_before_fc": False}, "norm_before_fc"),
        ({"attention_bias": True}, {"attention_bias": False}, "add attention_bias: true"),
        ({"qk_norm": True}, {"model_type": "llama"}, "add model_type: qwen3"),
        ({"num_hidden_layers": 2}, {"num_hidden_layers": 1}, "raise num_hidden_layers"),
    ],
)
def test_a_toggle_that_tensors_show_is_never_dropped(
    tmp_path: Path, toggles: dict[str, Any], switched_off: dict[str, Any], words: str
) -> None:
    tensors, values = written(tmp_path, **toggles)
    sentence = refusal(put(tmp_path / "theirs", tensors, values | switched_off))
    assert "config.json does not explain" in sentence
    assert words in sentence


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    tensors["model.norm.weight"] = tensors["norm.weight"].clone()
    assert "two tensors stand for norm.weight" in refusal(put(tmp_path / "theirs", tensors, values))


def test_parts_of_training_are_left_out(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    tensors["verifier_norm.weight"] = torch.ones(16)
    tensors["midlayer.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    check_same(put(tmp_path / "theirs", tensors, values), tmp_path / "original")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (print, ("code of a checkpoint ran",))


@pytest.mark.parametrize("content", [{"fc.weight": Evil()}, [torch.ones(1)], b"cut"])
def test_a_torch_file_that_is_no_dict_of_tensors_is_refused(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    _, values = written(tmp_path)
    folder = put(tmp_path / "theirs", {}, values)
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / "model.pt").write_bytes(content)
    else:
        torch.save(content, folder / "model.pt")
    assert "model.pt" in refusal(folder)
    assert "ran" not in capsys.readouterr().out


def test_hugging_face_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, values = written(tmp_path)
    folder = put(tmp_path / "theirs", tensors, values)
    (folder / "model.safetensors").unlink()
    calls: list[list[str]] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "someone/drafter"
        calls.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            torch.save(tensors, folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    loaded = load_checkpoint("someone/drafter", dtype=torch.float32, given=GIVEN)
    assert torch.equal(loaded.target_ids, IDS)
    assert len(calls) == 2


def test_a_fetch_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **_: object) -> str:
        raise OSError("the network\nis gone.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="cannot fetch a/b from Hugging Face: the network is"):
        load_checkpoint("a/b", dtype=torch.float32)


def test_what_is_neither_folder_nor_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a Hugging Face id"):
        load_checkpoint("no such folder here", dtype=torch.float32)
