"""As much of llama-cpp-python as `loadtests/peers/llama_child.py` uses, without a model.

Tokens follow from the prompt, and from the seed where they are sampled; a prompt that begins with
token 9 is refused, one with 8 kills the process. What was not reset is found again, and is wrong.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

print("a library that prints")

PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}


class Llama:
    def __init__(
        self, model_path: str, n_ctx: int, n_threads: int, n_threads_batch: int, verbose: bool
    ) -> None:
        if not Path(model_path).stat().st_size:
            raise ValueError(f"Failed to load model from file: {model_path}")
        self._room = n_ctx
        self._held: list[int] = []
        self._seed = 0

    def token_eos(self) -> int:
        return 7

    def reset(self) -> None:
        self._held = []

    def set_seed(self, seed: int) -> None:
        self._seed = seed

    def generate(self, tokens: list[int], temp: float, **sampling: float) -> Iterator[int]:
        assert sampling == PLAIN
        if tokens[0] == 9:
            raise ValueError("The prompt begins with 9.")
        if tokens[0] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        first = sum(tokens) + sum(self._held) + (self._seed if temp else 0)
        self._held += tokens
        while len(self._held) < self._room:
            self._held.append((first + len(self._held) - len(tokens)) % 50)
            yield self._held[-1]


def llama_print_system_info() -> bytes:
    return b"AVX2 = 1"
