"""C++ kernels for what is slow as a row of torch operators, which serve where there are none.

Every function takes tensors of any device and gives the same result either way, up to rounding.
"""

from specwire.kernels.attention import Reach, attend
from specwire.kernels.decoder import Decoder, DecoderMemory, DecoderWeights, LayerWeights
from specwire.kernels.drafter import Drafter, DrafterWeights
from specwire.kernels.drawing import Noise, draw, shares
from specwire.kernels.flash import Spans, flash_refusal, flash_serves, row_table
from specwire.kernels.graph import Record, Recorder, Recording, Tensors, called
from specwire.kernels.layer import add_norm, gate, join, norm, rotate
from specwire.kernels.levels import LEVELS, levels_here
from specwire.kernels.library import default_dtype, level, prepare
from specwire.kernels.linear import ROUNDING, Product, best, linear, tileable, tiled
from specwire.kernels.segment import Segment
from specwire.kernels.transfer import fetch, finish, put

__all__ = [
    "LEVELS",
    "ROUNDING",
    "Decoder",
    "DecoderMemory",
    "DecoderWeights",
    "Drafter",
    "DrafterWeights",
    "LayerWeights",
    "Noise",
    "Product",
    "Reach",
    "Record",
    "Recorder",
    "Recording",
    "Segment",
    "Spans",
    "Tensors",
    "add_norm",
    "attend",
    "best",
    "called",
    "default_dtype",
    "draw",
    "fetch",
    "finish",
    "flash_refusal",
    "flash_serves",
    "gate",
    "join",
    "level",
    "levels_here",
    "linear",
    "norm",
    "prepare",
    "put",
    "rotate",
    "row_table",
    "shares",
    "tileable",
    "tiled",
]
