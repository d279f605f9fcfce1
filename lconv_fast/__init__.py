"""lconv_fast: the L-conv layer of Dehmamy et al. 2021, fused and drop-in, for large images and volumes."""

from types import ModuleType

from lconv_fast import convert, functional, gconv, generators
from lconv_fast.explain import Explanation, explain
from lconv_fast.generators import (
    AffineDifferentialGenerators,
    AffineGenerators,
    DenseGenerators,
    DifferentialGenerators,
    FieldGenerators,
    Generators,
    GraphGenerators,
    LowRankGenerators,
    ProductGenerators,
    StencilGenerators,
)
from lconv_fast.invariants import DifferentialInvariants, invariants
from lconv_fast.modules import LConv1d, LConv2d, LConv3d, LConvGraph
from lconv_fast.recursive import DerivativeLConv, MaxLConv, RecursiveLConv, flow
from lconv_fast.regions import regions
from lconv_fast.streaming import stream
from lconv_fast.windows.window import window

__version__ = "0.1.0"

__all__ = [
    "AffineDifferentialGenerators",
    "AffineGenerators",
    "DenseGenerators",
    "DerivativeLConv",
    "DifferentialGenerators",
    "DifferentialInvariants",
    "Explanation",
    "FieldGenerators",
    "Generators",
    "GraphGenerators",
    "LConv1d",
    "LConv2d",
    "LConv3d",
    "LConvGraph",
    "LowRankGenerators",
    "MaxLConv",
    "ProductGenerators",
    "RecursiveLConv",
    "StencilGenerators",
    "adapters",
    "convert",
    "discovery",
    "explain",
    "flow",
    "functional",
    "gconv",
    "generators",
    "invariants",
    "nets",
    "physics",
    "regions",
    "sharding",
    "stream",
    "window",
]


def __getattr__(name: str) -> ModuleType:
    """Packages on top of the layers are imported when first used; discovery needs scipy, and not every user does."""
    if name in ("adapters", "discovery", "nets", "physics", "sharding"):
        import importlib

        return importlib.import_module(f"lconv_fast.{name}")
    raise AttributeError(f"module 'lconv_fast' has no attribute {name!r}")
