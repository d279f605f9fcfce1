"""Generators: bases L_1 .. L_nL of linear operators on functions on a grid or graph, one file for each kind."""

from lconv_fast.generators.affine import AffineGenerators
from lconv_fast.generators.affine_differential import AffineDifferentialGenerators
from lconv_fast.generators.base import Generators
from lconv_fast.generators.bases import BASES, named
from lconv_fast.generators.dense import DenseGenerators
from lconv_fast.generators.differential import DifferentialGenerators
from lconv_fast.generators.field import FieldGenerators
from lconv_fast.generators.graph import GraphGenerators
from lconv_fast.generators.low_rank import LowRankGenerators
from lconv_fast.generators.normalise import normalise
from lconv_fast.generators.on_grid import GridGenerators
from lconv_fast.generators.products import ProductGenerators
from lconv_fast.generators.stencil import StencilGenerators

__all__ = [
    "BASES",
    "AffineDifferentialGenerators",
    "AffineGenerators",
    "DenseGenerators",
    "DifferentialGenerators",
    "FieldGenerators",
    "Generators",
    "GraphGenerators",
    "GridGenerators",
    "LowRankGenerators",
    "ProductGenerators",
    "StencilGenerators",
    "named",
    "normalise",
]
