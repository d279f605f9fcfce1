"""Generators: bases L_1 .. L_nL of linear operators on functions on a grid or graph."""

from lconv_fast.generators.affine import (
    AffineGenerators,
    DenseGenerators,
    FieldGenerators,
    Generators,
    GridGenerators,
    StencilGenerators,
)

__all__ = ["AffineGenerators", "DenseGenerators", "FieldGenerators", "Generators", "GridGenerators", "StencilGenerators"]
