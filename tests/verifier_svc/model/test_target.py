"""Which targets are served, what is captured, and the output head."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3NextConfig,
)

import speckernels as kernels
from speckernels.fingerprint import target_fingerprint
from specserve.model_source import ModelSource
from specserve.settings import Compile, StartError
from tests.families.tiny import tiny_config, write_tiny
from tests.support.running_engine import settings_for
from tests.support.tiny_llama import write_tiny_llama
from verifier_svc import build
from verifier_svc.build import find_target, tokenizer_files
from verifier_svc.kv.block_pool import BlockPool
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.lm_head import LMHead
from verifier_svc.model.loading.loader import TargetError, load_tokenizer_files
from verifier_svc.model.target import Target, default_aux_layers, load_target
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.scheduling.scheduler import ScheduledRows

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Target:
    return load_target(
        ModelSource.parse(str(folder)),
        dtype=dtype,
        device=torch.device("cpu"),
        trust_remote_code=False,
    )


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def run(target: Target, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and captured features of all positions of one sequence."""
    cache = KVCache(
        blocks=8, layers=target.num_layers, kv_heads=target.kv_heads, head_dim=target.head_dim,
        feature_width=target.feature_width, dtype=target.dtype, device=target.device,
    )  # fmt: skip
    sequence = Sequence(0, GenerationRequest("", tuple(tokens), 1, Sampling()), frozenset(), 128)
    sequence.extent = BlockPool(8).take(8)
    with torch.inference_mode():
        hidden = target.run([ScheduledRows(sequence, 0, tuple(tokens), len(tokens))], cache)
        logits = target.head.logits(hidden)
    return logits, cache.read_features(sequence.slot, 0, len(tokens))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


TOKENS = [5, 9, 60, 0, 33, 33, 12, 7, 41, 2]


@pytest.mark.parametrize("aux_layers", [(0,), (0, 1, 2), (2, 0), (1, 1)])
def test_captured_features_are_the_inputs_of_the_aux_layers_in_order(
    tiny_llama: Path, aux_layers: tuple[int, ...]
) -> None:
    target = load(tiny_llama)
    target.capture(aux_layers)
    logits, features = run(target, TOKENS)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.inference_mode():
        out = reference(torch.tensor([TOKENS]), output_hidden_states=True)
    wanted = torch.cat([out.hidden_states[layer][0] for layer in aux_layers], -1)
    assert target.feature_width == wanted.shape[1]
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, out.logits[0], rtol=1e-4, atol=1e-4)


def test_a_prompt_leaves_the_same_however_it_is_cut(tmp_path: Path) -> None:
    """Bit by bit, in bf16 by our kernels: what it shares its steps with changes no answer."""
    folder = save(LlamaForCausalLM(LlamaConfig(**{**TINY, "hidden_size": 64})), tmp_path)
    kernels.load_kernels("auto")
    try:
        target = load(folder, torch.bfloat16)
        if kernels.pack_tiles(torch.zeros(32, 32, dtype=torch.bfloat16)) is None:
            pytest.skip("no C++ compiler here")
        tokens = tuple(torch.randint(61, (110,)).tolist())
        left = [prefilled(target, tokens, cuts) for cuts in ([110], [1, 16, 60, 33], [40, 5, 65])]
    finally:
        kernels.load_kernels("off")
    for hidden, *kept in left[1:]:
        assert torch.equal(hidden, left[0][0])
        assert all(map(torch.equal, kept, left[0][1:]))


def prefilled(target: Target, tokens: tuple[int, ...], cuts: list[int]) -> list[torch.Tensor]:
    """The last row's state of a prompt that is run in pieces, its features, keys and values."""
    cache = target.reserve(8, target.feature_width)
    sequence = Sequence(0, GenerationRequest("", tokens, 1, Sampling()), frozenset(), 128)
    sequence.extent = BlockPool(8).take(8)
    at = 0
    for count in cuts:
        piece = ScheduledRows(sequence, at, tokens[at : at + count], 1, prompt=True)
        hidden = target.run([piece], cache)
        at += count
    slots = slice(sequence.slot, sequence.slot + len(tokens))
    pools = [pool[slots] for pool in (*cache.keys, *cache.values)]
    return [hidden, cache.read_features(sequence.slot, 0, len(tokens)), *pools]


def test_two_forwards_at_once_capture_each_its_own_states(tiny_llama: Path) -> None:
    target = load(tiny_llama)
    alone = run(target, TOKENS)[1]
    others: list[torch.Tensor] = []

    def meanwhile(*_: Any) -> None:
        if not others:
            others.append(torch.empty(0))
            others[0] = run(target, TOKENS[::-1] * 2)[1]

    layer = target.model.get_decoder().layers[1].register_forward_pre_hook(meanwhile)
    between = run(target, TOKENS)[1]
    layer.remove()
    assert torch.equal(between, alone)
    assert torch.equal(others[0], run(target, TOKENS[::-1] * 2)[1])


@pytest.mark.parametrize("aux_layers", [(4,), (1, 3, 4)])
def test_the_number_of_layers_stands_for_the_last_state_before_the_final_norm(
    tiny_llama: Path, aux_layers: tuple[int, ...]
) -> None:
    target = load(tiny_llama)
    target.capture(aux_layers)
    _, features = run(target, TOKENS)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    reference.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.inference_mode():
        out = reference(torch.tensor([TOKENS]), output_hidden_states=True)
    last = features[:, -target.hidden_size :]
    torch.testing.assert_close(last, seen[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(last, out.hidden_states[4][0], rtol=0.1, atol=0.1)
    for at, layer in enumerate(aux_layers[:-1]):
        state = features[:, at * target.hidden_size : (at + 1) * target.hidden_size]
        torch.testing.assert_close(state, out.hidden_states[layer][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aux_layers", [(5,), (0, 99), (-1,), ()])
def test_layers_that_are_not_there_cannot_be_captured(
    tiny_llama: Path, aux_layers: tuple[int, ...]
) -> None:
    target = load(tiny_llama)
    before = target.aux_layers
    with pytest.raises(TargetError, match=r"^aux_layer_ids: "):
        target.capture(aux_layers)
    assert target.aux_layers == before
    run(target, TOKENS)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 30, 80])
def test_default_aux_layers_exist(layers: int) -> None:
    low, middle, high = default_aux_layers(layers)
    assert min(low, middle, high) >= 0
    assert max(low, middle, high) < layers
    if layers >= 30:
        assert (low, middle, high) == (2, layers // 2, layers - 3)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tmp_path: Path, tied: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=tied)).float()
    target = load(save(model, tmp_path))
    logits, _ = run(target, TOKENS)
    with torch.inference_mode():
        wanted = model(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert target.vocab_size == 61
    assert target.fingerprint == target_fingerprint(model)
    assert target.shape.hidden_size == 32


def test_biases_and_a_head_dim_of_its_own(tmp_path: Path) -> None:
    """Qwen2 has biases; the loader reads where its heads are wider than hidden_size says."""
    model = Qwen2ForCausalLM(Qwen2Config(**TINY, use_sliding_window=False)).float()
    target = load(save(model, tmp_path / "qwen2"))
    with torch.inference_mode():
        wanted = model(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(run(target, TOKENS)[0], wanted, rtol=1e-4, atol=1e-4)

    wide = LlamaForCausalLM(LlamaConfig(**TINY, head_dim=16, attention_bias=True)).float()
    target = load(save(wide, tmp_path / "wide"))
    assert target.head_dim == 16
    with torch.inference_mode():
        wanted = wide(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(run(target, TOKENS)[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_is_that_of_fp32_logits(tiny_llama: Path, dtype: torch.dtype) -> None:
    target = load(tiny_llama, dtype)
    hidden = torch.randn(200, 32).to(dtype)
    with torch.inference_mode():
        logits = target.head.logits(hidden)
        best = target.head.argmax(hidden).tolist()
    assert logits.dtype == torch.float32
    exact = hidden.double() @ target.model.get_output_embeddings().weight.double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-4, atol=1e-4)
    gaps = exact.topk(2).values.diff().abs().squeeze(-1)
    clear = [i for i in range(200) if gaps[i] > 1e-5]
    assert len(clear) > 190
    assert [best[i] for i in clear] == [int(exact[i].argmax()) for i in clear]


def test_bf16_logits_of_one_row_do_not_tie(tmp_path: Path) -> None:
    """Two tokens whose logits differ by less than a bf16 step: the larger in fp32 wins."""
    folder = write_tiny_llama(tmp_path)
    target = load(folder, torch.bfloat16)
    weight = target.model.get_output_embeddings().weight
    hidden = torch.zeros(1, 32, dtype=torch.bfloat16)
    hidden[0, :2] = torch.tensor([64.0, 0.0078125])
    with torch.inference_mode():
        weight[:, :2] = 0.0
        weight[[11, 70], 0] = 1.0
        weight[70, 1] = 1.0
        head = type(target.head)(target.model.get_output_embeddings(), target.config)
        assert head.argmax(hidden).tolist() == [70]
        assert int(head.logits(hidden).argmax()) == 70


@pytest.mark.parametrize("compile", ["on", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_finite_have_no_argmax(dtype: torch.dtype, compile: Compile) -> None:
    if compile == "on" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    kernels.load_kernels(compile)
    head = LMHead(torch.nn.Linear(32, 96, bias=False, dtype=dtype), None)
    hidden = torch.randn(5, 32).to(dtype)
    hidden[1, 7] = math.nan
    hidden[4, 0] = math.inf
    with torch.inference_mode():
        best = head.argmax(hidden)
        logits = head.logits(hidden)
    kernels.load_kernels("off")
    assert best.dtype == torch.int64
    assert [token >= 0 for token in best.tolist()] == [True, False, True, True, False]
    assert best[0] == logits[0].argmax()


def test_rows_are_scored_as_they_are_drawn(tiny_llama: Path) -> None:
    head, hidden = load(tiny_llama).head, torch.randn(5, 32)
    with torch.inference_mode():
        best, logits = head.argmax(hidden), head.logits(hidden)
        for greedy in ([True] * 5, [False] * 5, [True, False, False, True, False]):
            first, others = head.score(hidden, greedy)
            assert torch.equal(first, best[torch.tensor(greedy)])
            if all(greedy):
                assert others is None
            else:
                torch.testing.assert_close(others, logits[~torch.tensor(greedy)])


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=61))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=61))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(bloom, "BloomForCausalLM"), (mamba, "recurrent state")],
)
def test_other_architectures_are_refused_by_name(
    tmp_path: Path, make: Callable[[], Any], sentence: str
) -> None:
    folder = save(make(), tmp_path)
    with pytest.raises(TargetError, match=f"^target: .*{sentence}") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Qwen3NextConfig(num_hidden_layers=4), "layers of type linear_attention"),
        (DeepseekV3Config(num_hidden_layers=2), "deepseek_v3 has multi-head latent attention"),
    ],
)
def test_kinds_of_layers_are_refused_from_the_configuration_alone(
    tmp_path: Path, config: Any, kind: str
) -> None:
    """Before any weight is read: there are none."""
    config.save_pretrained(tmp_path)
    with pytest.raises(TargetError, match=f"^target: {kind}"):
        load(tmp_path)


def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"^target: .* cannot be loaded: ") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(TargetError, match=r"^target: .* cannot be loaded: "):
        load(tmp_path)


def test_broken_weights_are_refused_in_one_sentence(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TargetError, match=r"^target: .* cannot be loaded: ") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_end_tokens_come_from_the_generation_config_or_the_config(
    tmp_path: Path, tiny_llama: Path
) -> None:
    assert load(tiny_llama).eos_token_ids == {1}
    folder = write_tiny_llama(tmp_path)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, 7]}))
    assert load(folder).eos_token_ids == {1, 7}


def test_tokenizer_files_are_those_from_which_text_becomes_tokens(tiny_llama: Path) -> None:
    files = load_tokenizer_files(ModelSource.parse(str(tiny_llama)), trust_remote_code=False)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert json.loads(files["tokenizer.json"])["model"]["vocab"]["<|im_start|>"] == 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_target_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """Of some families transformers makes a tokenizer without any file."""
    folder = write_tiny(tiny_config(family), tmp_path)
    settings = settings_for(folder)
    with pytest.raises(StartError, match=r"^target: there is no tokenizer.json, nor"):
        tokenizer_files(settings, find_target(settings))


def test_what_is_no_model_is_not_said_to_lack_a_tokenizer(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with pytest.raises(StartError, match=r"^target: .* cannot be loaded: "):
        tokenizer_files(settings, find_target(settings))


def test_a_chat_template_that_gateways_cannot_read_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    settings = settings_for(folder)
    assert "chat_template.jinja" in tokenizer_files(settings, find_target(settings))
    (folder / "chat_template.jinja").write_text("{% for x in %}")
    with pytest.raises(StartError, match=r"^target: the model's chat template is broken: Expected"):
        tokenizer_files(settings, find_target(settings))


def test_all_lines_of_a_reason_are_told(tmp_path: Path) -> None:
    config = write_tiny_llama(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": "32"}))
    with pytest.raises(TargetError, match=r"'hidden_size' expected int, got str") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_warm_up_draws_in_the_mode_of_the_engine(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compiled in another mode would be compiled again for the first request."""
    target = load(tiny_llama)
    modes: list[bool] = []
    monkeypatch.setattr(build, "sample", lambda *_: modes.append(torch.is_inference_mode_enabled()))
    build.warm_up(target, target.reserve(4, target.feature_width), 1)
    assert len(modes) >= 2
    assert all(modes)
