"""What is asked of torch on a GPU, beside what its versions 2.11.0 and 2.13.0 publish.

The tables were read off `native_functions.yaml` and the Python sources of both.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from speckernels import QuerySegment, VarlenTables
from speckernels import flash_attention as flash_module
from speckernels.flash_attention import flash_attention, varlen_table
from tests.support.fake_flash_attention import flash_forward

# Arguments of `_flash_attention_forward` in their order: name and type, alike in both versions.
POSITIONAL = (
    ("query", "Tensor"),
    ("key", "Tensor"),
    ("value", "Tensor"),
    ("cum_seq_q", "Optional[Tensor]"),
    ("cum_seq_k", "Optional[Tensor]"),
    ("max_q", "int"),
    ("max_k", "int"),
    ("dropout_p", "float"),
    ("is_causal", "bool"),
    ("return_debug_mask", "bool"),
)
NAMED = (
    ("scale", "Optional[float]"),
    ("window_size_left", "Optional[int]"),
    ("window_size_right", "Optional[int]"),
    ("seqused_k", "Optional[Tensor]"),
    ("alibi_slopes", "Optional[Tensor]"),
)
# Behind those in 2.13 alone.
NEWER = (("block_table", "Optional[Tensor]"), ("num_splits", "Optional[int]"))
RESULTS = ("output", "softmax_logsumexp", "rng_state", "unused", "debug_attn_mask")
KINDS = {
    "Tensor": torch.Tensor,
    "Optional[Tensor]": torch.Tensor,
    "int": int,
    "Optional[int]": int,
    "float": float,
    "Optional[float]": float,
    "bool": bool,
}

# Arguments that are given by name, in both versions, by the callable that takes them.
GIVEN: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (torch.cuda.graph.__init__, ("cuda_graph", "pool", "stream", "capture_error_mode")),
    (torch.cuda.CUDAGraph.capture_begin, ("pool", "capture_error_mode")),
    (torch.cuda.CUDAGraph.capture_end, ()),
    (torch.cuda.CUDAGraph.replay, ()),
    (torch.cuda.Stream.wait_stream, ("stream",)),
    (torch.cuda.graph_pool_handle, ()),
    (torch.cuda.current_stream, ("device",)),
    (torch.cuda.stream, ("stream",)),
    (torch.cuda.device.__init__, ("device",)),
)


def called_with(rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What attention of segments of so many rows hands to the operator."""
    calls: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return flash_forward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_module, "_forward", forward)
        query, keys, values = torch.randn(rows, 4, 16), *torch.randn(2, 9, 2, 16)
        table = torch.tensor(varlen_table([QuerySegment(0, rows, 1, 3)]), dtype=torch.int32)
        spans = VarlenTables.of(table, rows, 9).within(4)
        flash_attention(query, keys, values, spans, 0.25, torch.zeros(4))
    ((args, kwargs),) = calls
    return args, kwargs


@pytest.mark.parametrize("rows", [1, 3])
def test_the_operator_is_called_as_both_versions_take_it(rows: int) -> None:
    args, kwargs = called_with(rows)
    assert len(args) == len(POSITIONAL)
    for value, (_, kind) in zip(args, POSITIONAL, strict=True):
        assert type(value) is KINDS[kind]
    assert set(kwargs) <= {name for name, _ in NAMED}
    for name, value in kwargs.items():
        assert type(value) is KINDS[dict(NAMED)[name]]


def test_the_operator_here_is_that_of_the_table() -> None:
    schema = flash_module._forward._schema
    assert schema.name == "aten::_flash_attention_forward"
    told = [(a.name, str(a.type), a.kwarg_only) for a in schema.arguments]
    named = [(*argument, True) for argument in NAMED]
    assert told[: len(POSITIONAL)] == [(*argument, False) for argument in POSITIONAL]
    assert told[len(POSITIONAL) :] in (named, named + [(*argument, True) for argument in NEWER])
    assert tuple(result.name for result in schema.returns) == RESULTS


def test_its_results_have_the_shapes_that_are_read() -> None:
    """On `meta`, by torch's own rule."""
    args, kwargs = called_with(3)
    there = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    kwargs["seqused_k"] = kwargs["seqused_k"].to("meta")
    out, sums, *_ = flash_module._forward(*there, **kwargs)
    assert out.shape == (3, 4, 16)
    assert (sums.shape, sums.dtype) == ((4, 3), torch.float32)


@pytest.mark.parametrize(("function", "names"), GIVEN)
def test_what_records_takes_what_it_is_given(function: Any, names: tuple[str, ...]) -> None:
    assert set(names) <= set(inspect.signature(function).parameters)


def test_products_are_summed_in_full_precision() -> None:
    schema = torch.ops.aten.mm.dtype._schema
    assert [(a.name, str(a.type)) for a in schema.arguments] == [
        ("self", "Tensor"),
        ("mat2", "Tensor"),
        ("out_dtype", "int"),
    ]
