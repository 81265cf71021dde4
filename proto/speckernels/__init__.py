"""C++ kernels for what is slow as a row of torch operators, which serve where there are none.

Every function takes tensors of any device and gives the same result either way, up to rounding.
"""

from speckernels.attention import AttentionMetadata, paged_attention
from speckernels.cpu_levels import LEVELS, levels_here
from speckernels.cuda_graph import (
    CapturedGraph,
    CaptureFn,
    CudaGraphCapture,
    Tensors,
    eager_capture,
)
from speckernels.eagle_drafter import EagleKernel, EagleWeights
from speckernels.flash_attention import VarlenTables, flash_refusal, flash_serves, packed_row_table
from speckernels.fused_ops import (
    apply_rope,
    embed_and_norm,
    fused_add_rms_norm,
    rms_norm,
    silu_and_mul,
)
from speckernels.library import cpu_level, default_dtype, load_kernels
from speckernels.linear import (
    ROUNDING,
    PackedWeight,
    argmax_logits,
    can_pack_tiles,
    linear,
    pack_tiles,
)
from speckernels.llama_decoder import DecoderWeights, KVMemory, LayerWeights, LlamaKernel
from speckernels.query_segment import QuerySegment
from speckernels.sampling import SamplingKeys, sample, token_probs
from speckernels.transfer import synchronize, to_device_async, to_host

__all__ = [
    "LEVELS",
    "ROUNDING",
    "AttentionMetadata",
    "CaptureFn",
    "CapturedGraph",
    "CudaGraphCapture",
    "DecoderWeights",
    "EagleKernel",
    "EagleWeights",
    "KVMemory",
    "LayerWeights",
    "LlamaKernel",
    "PackedWeight",
    "QuerySegment",
    "SamplingKeys",
    "Tensors",
    "VarlenTables",
    "apply_rope",
    "argmax_logits",
    "can_pack_tiles",
    "cpu_level",
    "default_dtype",
    "eager_capture",
    "embed_and_norm",
    "flash_refusal",
    "flash_serves",
    "fused_add_rms_norm",
    "levels_here",
    "linear",
    "load_kernels",
    "pack_tiles",
    "packed_row_table",
    "paged_attention",
    "rms_norm",
    "sample",
    "silu_and_mul",
    "synchronize",
    "to_device_async",
    "to_host",
    "token_probs",
]
