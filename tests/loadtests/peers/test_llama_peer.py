import os
from pathlib import Path

import pytest

from loadtests.common.result import RequestFailed
from loadtests.peers.llama_peer import LlamaPeer, model_arguments
from specserve.settings import StartError
from tests.loadtests.conftest import python_with


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


async def test_each_request_is_answered_anew_and_in_its_own_time(
    llama_python: str, gguf: str
) -> None:
    arguments = model_arguments(gguf, longest=64)
    async with LlamaPeer.running("llama", llama_python, arguments, os.environ) as peer:
        assert peer.most == 1
        first, again = [await peer.generate([1, 2], max_tokens=4) for _ in range(2)]
        sampled = [
            (await peer.generate([1, 2], max_tokens=4, temperature=1.0, seed=seed)).tokens
            for seed in (0, 5)
        ]
    assert first.tokens == again.tokens == sampled[0] == (3, 4, 5, 6)
    assert sampled[1] == (8, 9, 10, 11)
    assert [count for _, count in first.chunks] == [1] * 4
    assert 0 < first.chunks[0][0] <= first.chunks[-1][0] <= first.seconds
    assert peer.facts["versions"]["llama-cpp-python"] == "0.3.99"
    assert peer.facts["arguments"]["n_threads"] == len(os.sched_getaffinity(0))
    assert peer.facts["system"] == "AVX2 = 1"


async def test_an_end_token_ends_an_output_unless_it_is_ignored(
    llama_python: str, gguf: str
) -> None:
    arguments = model_arguments(gguf, longest=64)
    async with LlamaPeer.running("llama", llama_python, arguments, os.environ) as peer:
        stopped = await peer.generate([5], max_tokens=4)
        going_on = await peer.generate([5], max_tokens=4, ignore_eos=True)
    assert (stopped.tokens, stopped.finish_reason) == ((5, 6), "stop")
    assert (going_on.tokens, going_on.finish_reason) == ((5, 6, 7, 8), "length")


async def test_failures_are_of_one_request_or_of_all(llama_python: str, gguf: str) -> None:
    arguments = model_arguments(gguf, longest=64)
    async with LlamaPeer.running("llama", llama_python, arguments, os.environ) as peer:
        with pytest.raises(RequestFailed, match="begins with 9"):
            await peer.generate([9], max_tokens=4)
        assert (await peer.generate([1], max_tokens=4)).finish_reason == "length"
        with pytest.raises(RequestFailed, match="the llama process was killed by SIGKILL"):
            await peer.generate([8], max_tokens=4)


async def test_peers_that_cannot_start(llama_python: str, gguf: str, tmp_path: Path) -> None:
    bare, empty = python_with(tmp_path, tmp_path), tmp_path / "empty.gguf"
    empty.touch()
    for python, file, sentence in (
        (str(tmp_path / "none"), gguf, "cannot be run"),
        (bare, gguf, "cannot import llama_cpp: No module named 'llama_cpp'"),
        (llama_python, str(empty), "llama cannot start: Failed to load model from file"),
    ):
        with pytest.raises(StartError, match=sentence):
            arguments = model_arguments(file, longest=8)
            async with LlamaPeer.running("llama", python, arguments, os.environ):
                pass


def test_only_a_file_will_do(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"is not a \.gguf file, which --arms llama needs"):
        model_arguments(str(tmp_path), longest=8)
    with pytest.raises(StartError, match=r"--peer-target: target: there is no file"):
        model_arguments(str(tmp_path / "none.gguf"), longest=8)
