"""Putting a drafter together from files, and what stops it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from prometheus_client import REGISTRY
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from drafter_svc import __main__ as service
from drafter_svc import build
from drafter_svc.build import load_drafter
from drafter_svc.engine.messages import RoundMessage
from drafter_svc.engine.worker import Worker
from drafter_svc.formats.checkpoint import LoadedDrafter, load_checkpoint, save_checkpoint
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.model.target_embedding import load_embedding, load_head
from drafter_svc.settings import DrafterSettings
from speckernels import device
from speckernels.device import device_name
from specserve import logs, server
from specserve.gguf_cache import UnpackedGguf
from specserve.model_source import ModelSource
from specserve.settings import StartError
from specwire.messages import AppendEntries, DraftBudget
from tests.support.drafter_fixtures import GREEDY
from tests.support.tiny_drafter import tiny_config, tiny_drafter

ROOT = Path(__file__).parents[2]


def checkpoint(folder: Path, **changes: Any) -> str:
    values = {"hidden_size": 32, "target_hidden_size": 32, "vocab_size": 97, "head_dim": 8}
    config = tiny_config(**(values | changes))
    save_checkpoint(folder, tiny_drafter(config), torch.arange(config.draft_vocab_size) * 2)
    return str(folder)


def settings(checkpoint: str, target: Path | str, **values: Any) -> DrafterSettings:
    return DrafterSettings(checkpoint=checkpoint, target=str(target), **values)


def table(folder: Path, name: str = "model.embed_tokens.weight") -> torch.Tensor:
    return load_file(folder / "model.safetensors")[name]


def write_gguf(path: Path, **tensors: torch.Tensor) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_drafter_announces_what_it_is(tmp_path: Path, tiny_llama: Path) -> None:
    drafter = load_drafter(settings(checkpoint(tmp_path), tiny_llama, dtype="float32"), "9.9")
    description = drafter.description
    assert description.target_fingerprint == "feed"
    assert list(description.aux_layer_ids) == [1, 2, 3]
    assert (description.vocab_size, description.draft_vocab_size) == (97, 40)
    assert (description.target_hidden_size, description.hidden_size) == (32, 32)
    assert (description.fc_norm, description.norm_output) == (True, True)
    assert (description.max_length, description.max_draft_tokens) == (128, 16)
    assert (description.dtype, description.version) == ("float32", "9.9")
    assert description.lookup_match == 2
    assert description.device == device_name(torch.device("cpu"))
    assert not description.expected_acceptance, "the checkpoint declares none"
    drafter.worker.warm_up()


def test_a_drafter_announces_the_acceptance_that_its_checkpoint_declares(
    tmp_path: Path, tiny_llama: Path
) -> None:
    declared = {"held_out": {"overlap_per_step": [0.5, 0.25]}}
    folder = checkpoint(tmp_path, training=declared)
    description = load_drafter(settings(folder, tiny_llama, dtype="float32"), "").description
    assert list(description.expected_acceptance) == [0.5, 0.25]
    for position, chance in (("1", 0.5), ("2", 0.25)):
        name = "holdcourse_drafter_expected_acceptance"
        assert REGISTRY.get_sample_value(name, {"position": position}) == chance


@pytest.mark.parametrize("steps", [[0.5, 1.5], [-0.1], ["high"], [None], [True]])
def test_a_declared_acceptance_that_is_none_is_refused(
    steps: list[Any], tmp_path: Path, tiny_llama: Path
) -> None:
    folder = checkpoint(tmp_path)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config["holdcourse"]["training"] = {"held_out": {"overlap_per_step": steps}}
    path.write_text(json.dumps(config))
    with pytest.raises(StartError, match="overlap_per_step must be numbers between 0 and 1"):
        load_drafter(settings(folder, tiny_llama), "")


def test_an_mtp_head_is_served_from_its_files(tmp_path: Path, tiny_llama: Path) -> None:
    folder = checkpoint(tmp_path, mtp_head=True, aux_layers=(4,), num_hidden_layers=2)
    drafter = load_drafter(settings(folder, tiny_llama, dtype="float32"), "")
    assert list(drafter.description.aux_layer_ids) == [4]
    drafter.worker.warm_up()


def test_lookups_are_switched_by_one_setting(tmp_path: Path, tiny_llama: Path) -> None:
    flags = ["--checkpoint", checkpoint(tmp_path), "--target", str(tiny_llama)]
    for value, match in (("off", 0), ("1", 1), ("16", 16)):
        given = DrafterSettings.read("drafter_svc", flags, {"HOLDCOURSE_LOOKUP": value})
        assert load_drafter(given, "").description.lookup_match == match
    for value in ("0", "17", "on", ""):
        with pytest.raises(StartError, match="--lookup: must be off or a number from 1 to 16"):
            DrafterSettings.read("drafter_svc", [*flags, "--lookup", value], {})


def test_memory_for_kv_bounds_the_length(tmp_path: Path, tiny_llama: Path) -> None:
    row_bytes = 2 * 2 * 8 * 4
    small = settings(checkpoint(tmp_path), tiny_llama, dtype="float32", kv_memory=100 * row_bytes)
    assert load_drafter(small, "").description.max_length == 100 - 16
    with pytest.raises(StartError, match="--kv-memory"):
        load_drafter(small.model_copy(update={"kv_memory": 16 * row_bytes}), "")


def test_a_gpu_gives_a_sixteenth_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (124 << 30, 140 << 30))
    # An 8B's drafter: two of 8 heads of 128 elements; the target has at most 800,000 tokens.
    assert build._automatic(torch.device("cuda", 3)) // (2 * 8 * 128 * 2) > 2 * 800_000
    assert build._automatic(torch.device("cpu")) == 512 << 20


def test_the_loading_thread_has_the_last_gpu_and_its_memory(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 140 << 30))

    def loaded(*given: object, device: torch.device, **others: object) -> LoadedDrafter:
        assert device == torch.device("cuda", 3)
        return load_checkpoint(*given, device=torch.device("cpu"), **others)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "load_checkpoint", loaded)
    given = settings(checkpoint(tmp_path), tiny_llama, dtype="float32", kv_memory=8 << 20)
    with pytest.raises(StartError, match=r"^The drafter's --kv-memory: 8 MiB were asked for on cu"):
        load_drafter(given.model_copy(update={"device": "auto"}), "")
    assert used == [torch.device("cuda", 3)]


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 98), ("hidden_size", 16)])
def test_embeddings_of_another_shape_are_another_target(
    tmp_path: Path, tiny_llama: Path, field: str, value: int
) -> None:
    width = {"hidden_size": value, "target_hidden_size": value} if field == "hidden_size" else {}
    folder = checkpoint(tmp_path, **({field: value} | width))
    with pytest.raises(StartError, match="made for another target"):
        load_drafter(settings(folder, tiny_llama), "")


def test_a_missing_checkpoint_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(StartError, match=r"cannot read .*absent/config\.json"):
        load_drafter(settings(str(tmp_path / "absent"), tiny_llama), "")


def test_a_missing_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="there is no folder"):
        load_drafter(settings(checkpoint(tmp_path), "./nowhere"), "")


def test_embeddings_of_a_folder(tiny_llama: Path) -> None:
    read = load_embedding(ModelSource(str(tiny_llama)), torch.float32, False)
    assert torch.equal(read, table(tiny_llama))


def test_embeddings_of_a_folder_in_shards(tmp_path: Path, tiny_llama: Path) -> None:
    LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    read = load_embedding(ModelSource(str(tmp_path)), torch.float32, False)
    assert torch.equal(read, table(tiny_llama))


def test_embeddings_of_a_gguf_file(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_gguf(tmp_path / "target.gguf", token_embd=table(tiny_llama))
    read = load_embedding(ModelSource.parse(str(path)), torch.float32, False)
    assert torch.equal(read, table(tiny_llama))


def test_the_head_of_a_folder_is_its_own_or_tied(tmp_path: Path, tiny_llama: Path) -> None:
    head = table(tiny_llama, "lm_head.weight")
    assert torch.equal(load_head(ModelSource(str(tiny_llama)), torch.float32, False), head)
    config = LlamaConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tied = load_head(ModelSource(str(tmp_path)), torch.float32, False)
    assert torch.equal(tied, table(tmp_path))


def test_the_head_of_a_gguf_file_is_its_own_or_tied(tmp_path: Path, tiny_llama: Path) -> None:
    embeddings, head = table(tiny_llama), table(tiny_llama, "lm_head.weight")
    own = write_gguf(tmp_path / "own.gguf", token_embd=embeddings, output=head)
    tied = write_gguf(tmp_path / "tied.gguf", token_embd=embeddings)
    for path, expected in ((own, head), (tied, embeddings)):
        source = ModelSource.parse(str(path))
        assert torch.equal(load_head(source, torch.float32, False), expected)


def test_a_drafter_that_borrows_the_targets_head_is_served(
    tmp_path: Path, tiny_llama: Path
) -> None:
    """Through the same chain as the same drafter with that head of its own."""
    config = tiny_config(hidden_size=32, target_hidden_size=32, vocab_size=97, draft_vocab_size=97)
    own = tiny_drafter(config)
    own.lm_head.weight.data.copy_(table(tiny_llama, "lm_head.weight"))
    borrowing = EagleDrafter(replace(config, own_head=False))
    borrowing.load_state_dict(own.state_dict(), strict=False)
    drafts = []
    for name, drafter in (("own", own), ("borrowing", borrowing)):
        save_checkpoint(tmp_path / name, drafter, torch.arange(97))
        given = settings(str(tmp_path / name), tiny_llama, dtype="bfloat16")
        worker = load_drafter(given, "").worker
        worker.open_link(1)
        extend = AppendEntries(7, 0, (5, 9, 12, 40), DraftBudget(5, 0), GREEDY)
        torch.manual_seed(0)
        message = RoundMessage(1, (extend,), torch.randn(4, 96, dtype=torch.bfloat16), (), 0.0)
        drafts.append(worker.serve([message])[1].drafts)
    assert drafts[0] == drafts[1]
    assert len(drafts[0][0].tokens) == 5


def test_embeddings_of_a_gguf_file_that_a_verifier_unpacked(
    tmp_path: Path, tiny_llama: Path
) -> None:
    shards = tmp_path / "shards"
    LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(shards, max_shard_size="20KB")
    for folder in (tiny_llama, shards):
        kept = UnpackedGguf(str(folder), "model.embed_tokens.weight")
        source = ModelSource(str(tmp_path), "is-not-read.gguf", kept)
        assert torch.equal(load_embedding(source, torch.float32, False), table(tiny_llama))


@pytest.mark.parametrize("name", ["target.gguf", "model/config.json"])
def test_a_damaged_target_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not a model")
    source = ModelSource.parse(str(path if path.suffix == ".gguf" else path.parent))
    with pytest.raises(StartError, match=r"^Cannot read the embeddings of") as caught:
        load_embedding(source, torch.float32, False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--target", "."], "--checkpoint or HOLDCOURSE_DRAFTER is required"),
        (["--checkpoint", ".", "--target", ".", "--max-draft-tokens", "0"], "--max-draft-tokens"),
        (["--checkpoint", ".", "--target", ".", "--dtype", "int8"], "--dtype"),
        (["--checkpoint", ".", "--target", ".", "--device", "tpu"], "--device"),
    ],
)
def test_a_bad_setting_is_named(flags: list[str], part: str) -> None:
    with pytest.raises(StartError) as caught:
        DrafterSettings.read("drafter_svc", flags, {})
    assert part in str(caught.value)


def test_the_program_stops_with_one_sentence() -> None:
    command = [sys.executable, "-m", "drafter_svc", "--listen", "127.0.0.1:0"]
    result = subprocess.run(
        [*command, "--metrics-port", "0", "--checkpoint", "/nowhere", "--target", "."],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "proto")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("drafter_svc: cannot read /nowhere/config.json")


@pytest.mark.parametrize(
    "change", [{}, {"mtp_head": True, "aux_layers": (4,), "num_hidden_layers": 2}]
)
async def test_a_service_warms_the_rows_that_it_announces(
    change: dict[str, Any], tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Warming(Exception):
        """As far as it gets."""

    def engine(worker: Worker, *_: Any) -> None:
        raise Warming(worker.projected)

    given = settings(checkpoint(tmp_path, **change), tiny_llama, dtype="float32")
    drafter = load_drafter(given, "")
    assert drafter.worker.projected is None, "one in a verifier's process announces nothing"
    monkeypatch.setattr(DrafterSettings, "read", lambda *_: given)
    for module, name in (
        (server, "check_bindable"), (server, "serve_metrics"), (device, "prepare"),
        (logs, "configure"), (sys, "setswitchinterval"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(service, "in_throwaway_thread", lambda *_: drafter)
    monkeypatch.setattr(service, "Engine", engine)
    with pytest.raises(Warming) as warming:
        await service.main()
    assert warming.value.args == (drafter.projection and drafter.projection.width,)
