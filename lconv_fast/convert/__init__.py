"""Convolutions, graph convolutions and whole models as L-convs, with proof, and L-convs as plain operators."""

from lconv_fast.convert.conv import from_conv, to_conv

__all__ = ["from_conv", "to_conv"]
