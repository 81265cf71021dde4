"""transformers' own `generate`, as a child process that speaks JSON lines (`json_child`).

    python -m loadtests.peers.transformers_child TARGET DTYPE

It is written as any user of transformers would write it: `from_pretrained`, `generate`, defaults.
Between two requests it sleeps in a read.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import speckernels as kernels
from loadtests.peers.environment import telling
from loadtests.peers.matmul_time import TimedProduct
from loadtests.peers.memory_bandwidth import bandwidth
from speckernels.fingerprint import target_fingerprint
from specserve.model_source import ModelSource
from specserve.settings import Level


class Reference:
    """A causal LM of transformers in one dtype."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.fingerprint = target_fingerprint(model)
        ends = model.generation_config.eos_token_id
        self._ends: list[int] = [] if ends is None else ends if isinstance(ends, list) else [ends]
        # The model's own sampling defaults would not be what a request to the API asks for.
        self._generation_config = model.generation_config
        model.generation_config = GenerationConfig()
        self._product: TimedProduct | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the parent is told at the start."""
        return {
            "fingerprint": self.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights": self._weights(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "capability": torch.backends.cpu.get_cpu_capability(),
            "environment": telling(os.environ),
        }

    @classmethod
    def load(cls, target: str, dtype: str) -> Reference:
        """Load a Hugging Face id, folder or GGUF file in the dtype of that name."""
        source = ModelSource.parse(target)
        model = AutoModelForCausalLM.from_pretrained(
            source.location, dtype=getattr(torch, dtype), **source.arguments
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device).eval())

    def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> dict[str, Any]:
        """Continue `tokens`; returns new tokens without the end token, finish reason, seconds."""
        inputs = torch.tensor([tokens], device=self.model.device)
        how: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            how |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
            torch.manual_seed(seed)
        began = time.perf_counter()
        output = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_tokens,
            eos_token_id=None if ignore_eos else self._ends or None,
            pad_token_id=0,
            **how,
        )
        new: list[int] = output[0, len(tokens) :].tolist()
        seconds = time.perf_counter() - began
        stopped = not ignore_eos and bool(new) and new[-1] in self._ends
        return {
            "tokens": new[:-1] if stopped else new,
            "finish_reason": "stop" if stopped else "length",
            "seconds": seconds,
        }

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], start: int, stopped: bool) -> list[float]:
        """How far each token from `start` on is below the best one, in logits; 0 for the best.

        One more value, for an end token after the last, where the output `stopped` there.
        """
        logits = self._logits(tokens)[start - 1 :]
        inputs = torch.tensor([tokens], device=self.model.device)
        given = logits[:-1].gather(1, inputs[0, start:, None])[:, 0]
        gaps = logits[:-1].amax(-1) - given
        if stopped:
            end = logits[-1].amax() - logits[-1, self._ends].amax()
            gaps = torch.cat([gaps, end[None]])
        values: list[float] = gaps.tolist()
        return values

    @torch.inference_mode()
    def noise(self, tokens: Sequence[int], start: int) -> float:
        """How much the logit gap of the top two tokens changes with the shape of the forward.

        The largest change from `start` on, between one forward over all `tokens` and decoding
        them one by one behind a cache.
        """
        together = self._logits(tokens)[start - 1 : -1]
        out = self.model(torch.tensor([tokens[:start]], device=self.model.device), use_cache=True)
        rows = [out.logits[0, -1]]
        for token in tokens[start:-1]:
            step = torch.tensor([[token]], device=self.model.device)
            out = self.model(step, past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0, -1])
        best = together.topk(2).indices
        one, other = (logits.gather(1, best) for logits in (together, torch.stack(rows).float()))
        return float((one.diff() - other.diff()).abs().max())

    def bandwidth(self) -> float:
        """Bytes per second that the memory of the model's device gives."""
        return bandwidth(self.model.device)

    def head(self, rows: int, level: Level | None) -> float:
        """Seconds that the product of the head with so many rows takes, by kernels of a level."""
        if self._product is None:
            kernels.load_kernels("on", level) if level else kernels.load_kernels("off")
            self._product = TimedProduct(self.model.get_output_embeddings().weight)
        return self._product.seconds(rows)

    def save(self, target: str, folder: str) -> None:
        """Write the model, and the tokenizer of `target`, as a folder of Hugging Face's layout.

        Weights that were read from a GGUF file are written as they are computed with.
        """
        model, source = self.model, ModelSource.parse(target)
        for attribute in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, attribute):
                delattr(model.config, attribute)
        model.hf_quantizer = model.quantization_method = None
        model.is_quantized = False
        ours, model.generation_config = model.generation_config, self._generation_config
        try:
            model.save_pretrained(folder)
        finally:
            model.generation_config = ours
        AutoTokenizer.from_pretrained(source.location, **source.arguments).save_pretrained(folder)

    def _weights(self) -> dict[str, int]:
        """Bytes of the head, and of all else that a forward reads: no table of embeddings."""
        model = self.model
        head, embeddings = (
            get().weight for get in (model.get_output_embeddings, model.get_input_embeddings)
        )
        tables = {head.data_ptr(), embeddings.data_ptr()}
        layers = [p.nbytes for p in model.parameters() if p.data_ptr() not in tables]
        return {"layers": sum(layers), "head": head.nbytes}

    def _logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """fp32 `[len(tokens), vocab]` of one forward."""
        inputs = torch.tensor([tokens], device=self.model.device)
        logits: torch.Tensor = self.model(inputs).logits[0].float()
        return logits


def main() -> None:
    """Load, say so, and answer request after request until the input ends."""
    logging.disable(logging.WARNING)
    # What libraries print must not get between the answers.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        try:
            reference = Reference.load(*sys.argv[1:])
        except Exception as error:  # transformers raises many kinds for a missing or broken model
            _send(answers, {"id": 0, "error": _first_line(error)})
            return
        _send(answers, {"id": 0, "value": reference.facts})
        for line in sys.stdin:
            request = json.loads(line)
            number, operation = request.pop("id"), getattr(reference, request.pop("operation"))
            try:
                answer = {"id": number, "value": operation(**request)}
            except Exception as error:  # of torch, transformers or the disk: one request's failure
                answer = {"id": number, "error": _first_line(error)}
            _send(answers, answer)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _send(answers: TextIO, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
