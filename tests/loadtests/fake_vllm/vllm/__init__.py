"""As much of vLLM as `loadtests/peers/vllm_child.py` uses, without a model.

Every draft has two tokens accepted, or FAKE_ACCEPTED; a prompt that begins with token 9 is
refused, one with 8 kills the process, and a model named `broken` cannot be loaded.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

print("a library that prints")


@dataclass
class EngineArgs:
    model: str
    dtype: str
    max_num_seqs: int
    max_model_len: int
    enforce_eager: bool
    enable_prefix_caching: bool
    speculative_config: dict[str, Any] | None = None
    per_request_spec_decode_metrics: str = "none"


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    ignore_eos: bool
    output_kind: object


@dataclass
class Sequence:
    prompt: list[int]
    left: int
    count: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


class LLMEngine:
    def __init__(self, arguments: EngineArgs) -> None:
        if arguments.model == "broken":
            print("(Worker pid=7) ERROR OSError: no weights here.", file=sys.stderr)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        config = arguments.speculative_config
        self._length = config["num_speculative_tokens"] if config else 0
        self._arguments = arguments
        self._sequences: dict[str, Sequence] = {}

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> "LLMEngine":
        return cls(arguments)

    def add_request(self, name: str, prompt: dict[str, Any], sampling: SamplingParams) -> None:
        tokens = prompt["prompt_token_ids"]
        if tokens[0] == 9:
            raise ValueError("The prompt begins with 9.")
        if tokens[0] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        self._sequences[name] = Sequence(tokens, sampling.max_tokens)
        assert len(self._sequences) <= self._arguments.max_num_seqs

    def step(self) -> list[Any]:
        return [self._advance(name) for name in list(self._sequences)]

    def _advance(self, name: str) -> Any:
        sequence, accepted = self._sequences[name], 0
        if sequence.count and self._length:
            accepted = int(os.environ.get("FAKE_ACCEPTED", "2"))
            sequence.drafted.append(self._length)
            sequence.accepted.append(accepted)
        new = min(1 + accepted, sequence.left)
        ids = [(sum(sequence.prompt) + sequence.count + i) % 50 for i in range(new)]
        sequence.count += new
        sequence.left -= new
        metrics = SimpleNamespace(
            per_step_drafted=sequence.drafted, per_step_accepted=sequence.accepted
        )
        if not sequence.left:
            del self._sequences[name]
        completion = SimpleNamespace(
            token_ids=ids,
            finish_reason=None if sequence.left else "length",
            spec_decode_metrics=metrics if self._length and not sequence.left else None,
        )
        return SimpleNamespace(request_id=name, outputs=[completion])
