"""C++ kernels for what is slow as a row of torch operators, which serve where there are none.

Every function takes tensors of any device and gives the same result either way, up to rounding.
"""

from specwire.kernels.attention import Reach, Segment, attend
from specwire.kernels.decoder import Decoder, DecoderMemory, DecoderWeights, LayerWeights
from specwire.kernels.drafter import Drafter, DrafterWeights
from specwire.kernels.drawing import Noise, draw, shares
from specwire.kernels.layer import add_norm, gate, join, norm, rotate
from specwire.kernels.library import Compile, prepare
from specwire.kernels.linear import ROUNDING, Product, best, linear, tileable, tiled

__all__ = [
    "ROUNDING",
    "Compile",
    "Decoder",
    "DecoderMemory",
    "DecoderWeights",
    "Drafter",
    "DrafterWeights",
    "LayerWeights",
    "Noise",
    "Product",
    "Reach",
    "Segment",
    "add_norm",
    "attend",
    "best",
    "draw",
    "gate",
    "join",
    "linear",
    "norm",
    "prepare",
    "rotate",
    "shares",
    "tileable",
    "tiled",
]
