"""C++ kernels for what is slow as a row of torch operators, which serve where there are none.

Every function takes tensors of any device and gives the same result either way, up to rounding.
"""

from specwire.kernels.attention import attend
from specwire.kernels.drawing import Noise, draw, shares
from specwire.kernels.library import Compile, prepare

__all__ = ["Compile", "Noise", "attend", "draw", "prepare", "shares"]
