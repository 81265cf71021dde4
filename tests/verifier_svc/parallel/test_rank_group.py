"""A target split over two ranks says what the whole one says, and ends where a rank is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import grpc
import pytest
import torch
import torch.distributed as dist
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MixtralConfig

from specserve.settings import StartError
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub
from tests.support.engine_fixtures import LENGTH, PROMPTS, Texts, generate_all, prompt_of
from tests.support.ports import free_port
from tests.support.rank_processes import end, meeting_point, start_rank
from tests.support.running_engine import RunningEngine, settings_for, target_of
from tests.support.scripted_drafter import ScriptedDrafter, good, welcome_for
from tests.support.tiny_llama import write_tiny_llama
from tests.verifier_svc.engine.test_engine import check_states
from verifier_svc.build import build_target, find_target
from verifier_svc.model.target import Target
from verifier_svc.parallel import rank_group as ranks_module
from verifier_svc.parallel.rank_group import RankGroup
from verifier_svc.parallel.sharding import shard_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="ranks would take GPUs")


@dataclass
class Pair:
    """Rank 0 in this process, and the other one."""

    target: Target
    ranks: RankGroup
    other: BaseProcess


MakePair = Callable[..., AbstractContextManager[Pair]]


@pytest.fixture
def pair(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> MakePair:
    @contextmanager
    def make(folder: Path, *flags: str) -> Iterator[Pair]:
        meeting = meeting_point()
        for name, value in {**meeting, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        other = start_rank(1, meeting, folder, tmp_path / "log", *flags)
        try:
            ranks = RankGroup.join(torch.device("cpu"))
            assert ranks is not None
            settings = settings_for(folder, *flags)
            target = build_target(settings, find_target(settings), ranks)
            yield Pair(target, ranks, other)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            end(other)

    return make


def biased_llama(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_()
    model.save_pretrained(folder)
    return folder


class Rows(NamedTuple):
    slot: int
    position: int
    tokens: tuple[int, ...]
    prompt: bool = False


def test_two_ranks_say_what_one_says(tiny_llama: Path, texts: Texts, pair: MakePair) -> None:
    """Plainly, with drafts, and on a prefix that was computed before."""
    with pair(tiny_llama) as both:
        target = both.target
        assert target.fingerprint == target_of(tiny_llama).fingerprint
        assert target.kv_heads == 1
        drafter = ScriptedDrafter(welcome_for(target), good(texts, wrong=0.2))
        with RunningEngine(tiny_llama, drafter, "--draft-length", "3", target=target) as engine:
            results = generate_all(engine)
            turn = engine.generate(texts[4], max_tokens=8, ignore_eos=True)
        assert [result.text for result in results] == texts
        assert all(result.finished.usage.accepted_draft_tokens for result in results)
        tokens, rows = drafter.seen[5]
        check_states(tiny_llama, tokens, rows, target.aux_layers)
        assert turn.finished.usage.cached_prompt_tokens > 100
        with RunningEngine(tiny_llama, None, "--prefix-cache", "off") as engine:
            assert turn.text == engine.generate(texts[4], max_tokens=8, ignore_eos=True).text
        with RunningEngine(tiny_llama, None, target=target) as engine:
            assert [result.text for result in generate_all(engine)] == texts
        both.ranks.leave()
        both.other.join(10)
        assert both.other.exitcode == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_changes_in_a_cache_changes_on_every_rank(
    tmp_path: Path, pair: MakePair, dtype: str
) -> None:
    """Of a target whose linear layers have biases, too."""
    folder, tokens = biased_llama(tmp_path / "biased"), prompt_of(40)
    settings = settings_for(folder, "--dtype", dtype)
    whole = build_target(settings, find_target(settings))
    states = []
    with pair(folder, "--dtype", dtype) as both:
        for target in (whole, both.target):
            target.reserve(1, 0)
            cache = target.reserve(8, 0)
            first, _ = target.states([Rows(0, 0, tokens)], cache, ())
            cache.copy(0, 64, 40)
            cache.clear(64, 8)
            second, inputs = target.states([Rows(64, 40, (7, 8)), Rows(0, 40, (7,))], cache, (1,))
            states.append((first, second, inputs[1]))
        both.ranks.leave()
    assert not torch.allclose(states[0][1][0], states[0][1][2], rtol=0.1)
    error = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(states[1], states[0], rtol=error, atol=error)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_the_engine(
    tiny_llama: Path,
    pair: MakePair,
    monkeypatch: pytest.MonkeyPatch,
    fate: signal.Signals,
) -> None:
    monkeypatch.setattr(ranks_module, "STEP_TIMEOUT", timedelta(seconds=4))
    with pair(tiny_llama) as both, RunningEngine(tiny_llama, target=both.target) as engine:
        assert both.other.pid is not None
        os.kill(both.other.pid, fate)
        assert engine.generate(PROMPTS[0]).failed.reason
        engine.engine.join()
        assert both.ranks.lost
        with pytest.raises(RuntimeError, match="Another rank has ended"):
            both.target.reserve(1, 0)


def test_different_weights_are_refused_on_every_rank(tmp_path: Path, tiny_llama: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", seed=1)
    meeting, logs = meeting_point(), [tmp_path / "0", tmp_path / "1"]
    ranks = [
        start_rank(rank, meeting, folder, logs[rank], "--listen", "127.0.0.1:0")
        for rank, folder in enumerate((tiny_llama, other))
    ]
    try:
        for rank in ranks:
            rank.join(30)
        assert [rank.exitcode for rank in ranks] == [2, 2]
    finally:
        for rank in ranks:
            end(rank)
    sentence = "verifier_svc: Rank 1 differs from rank 0 in its weights; all ranks must load"
    assert all(sentence in log.read_text() for log in logs)


def test_a_drain_ends_all_ranks_after_the_last_generation(
    tmp_path: Path, tiny_llama: Path, texts: Texts
) -> None:
    meeting, logs = meeting_point(), [tmp_path / "0", tmp_path / "1"]
    address = f"127.0.0.1:{free_port()}"
    ranks = [
        start_rank(rank, meeting, tiny_llama, logs[rank], "--listen", address) for rank in (0, 1)
    ]
    prompt, text = PROMPTS[2], texts[2]
    sampling = pb.Sampling(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    request = pb.GenerateRequest(
        tokens=prompt, output_start=len(prompt), sampling=sampling, request_id="r"
    )
    try:
        with grpc.insecure_channel(address) as channel:
            frames = VerifierServiceStub(channel).Generate(request, wait_for_ready=True, timeout=60)
            tokens = list(next(frames).tokens.ids)
            # As torchrun passes on its own SIGTERM.
            for rank in ranks:
                assert rank.pid is not None
                os.kill(rank.pid, signal.SIGTERM)
            for frame in frames:
                tokens += frame.tokens.ids
        assert [*prompt, *tokens] == text
        for rank in ranks:
            rank.join(20)
        assert [rank.exitcode for rank in ranks] == [0, 0], [log.read_text() for log in logs]
    finally:
        for rank in ranks:
            end(rank)


TINY: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 32, "vocab_size": 61}


@pytest.mark.parametrize(
    ("config", "world", "sentence"),
    [
        (LlamaConfig(**TINY, num_attention_heads=4, num_key_value_heads=2), 3, "its 2 key-value"),
        (MixtralConfig(**TINY, num_local_experts=2), 2, "layers of type .*moe_tp_experts"),
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=61), 2, "GPT2LMHeadModel has no"),
    ],
)
def test_targets_that_cannot_be_split_are_refused(config: Any, world: int, sentence: str) -> None:
    with pytest.raises(StartError, match=f"^target: .*{sentence}") as error:
        shard_model(config, SimpleNamespace(world=world), trust_remote_code=False)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
