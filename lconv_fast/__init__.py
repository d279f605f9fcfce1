"""lconv_fast: the L-conv layer of Dehmamy et al. 2021, fused and drop-in, for large images and volumes."""

from lconv_fast import functional
from lconv_fast.explain import Explanation, explain
from lconv_fast.generators import (
    AffineGenerators,
    DenseGenerators,
    FieldGenerators,
    Generators,
    StencilGenerators,
)
from lconv_fast.modules import LConv1d, LConv2d, LConv3d

__version__ = "0.1.0"

__all__ = [
    "AffineGenerators",
    "DenseGenerators",
    "Explanation",
    "FieldGenerators",
    "Generators",
    "LConv1d",
    "LConv2d",
    "LConv3d",
    "StencilGenerators",
    "explain",
    "functional",
]
