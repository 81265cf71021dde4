"""Tokens per second, and the share of the hardware's matrix rate that training makes of it."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of one process: ``tokens_per_second`` of text, and the FLOPs of products for each of them."""

    tokens_per_second: float
    flops_per_token: float

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.tokens_per_second * self.flops_per_token

    def describe(self, matrix_rate: float) -> str:
        """One sentence; ``matrix_rate`` is what the machine reaches, in FLOP/s."""
        return (
            f"{self.tokens_per_second:.0f} tokens/s of {self.flops_per_token / 1e9:.2f} GFLOP: "
            f"{self.rate / 1e12:.3f} TFLOP/s, {self.rate / matrix_rate:.0%} of the "
            f"{matrix_rate / 1e12:.3f} that matrix products reach here"
        )


class Meter:
    """Tokens of each kind of work, and the FLOPs of its matrix products.

    The first work of a kind is counted, product by product; for later ones the same per token is
    assumed. Several threads may work at once.
    """

    def __init__(self) -> None:
        self._tokens: Counter[Hashable] = Counter()
        self._rates: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def work(self, kind: Hashable, tokens: int) -> Iterator[None]:
        """What is done inside is work of ``kind`` on ``tokens`` tokens."""
        if kind in self._rates:
            yield
        else:
            with _Count() as count:
                yield
            self._rates[kind] = count.flops / tokens
        with self._lock:
            self._tokens[kind] += tokens

    @property
    def flops(self) -> float:
        """Of all work so far."""
        with self._lock:
            return sum(self._rates[kind] * tokens for kind, tokens in self._tokens.items())


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of matrix products and fused attention in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        out = func(*args, **named)
        packet = func._overloadpacket
        if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
            causal = args[4] if len(args) > 4 else named.get("is_causal", False)
            self.flops += 4 * _products(args[0], args[1], causal)
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.flops += 10 * _products(args[1], args[2], args[7])
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **named, out_val=out)
        return out


def _products(queries: torch.Tensor, keys: torch.Tensor, causal: bool) -> float:
    """Multiplications of all queries with all keys they see, ``[B, heads, T, d]``."""
    return queries.numel() * keys.shape[2] * (0.5 if causal else 1.0)


def matrix_rate(
    shapes: Sequence[tuple[int, int, int]], device: torch.device, seconds: float = 0.5
) -> float:
    """FLOP/s of bf16 products ``[m, k] x [k, n]``: the best of ``shapes``, in some ``seconds``."""
    best = 0.0
    for m, k, n in shapes:
        factors = {
            "a": torch.randn(m, k, device=device).bfloat16(),
            "b": torch.randn(n, k, device=device).bfloat16(),
        }
        timer = Timer("a @ b.T", globals=factors, num_threads=torch.get_num_threads())
        median = timer.blocked_autorange(min_run_time=seconds / len(shapes)).median
        best = max(best, 2 * m * k * n / median)
    return best
