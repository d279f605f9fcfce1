"""Convolutions, graph convolutions and whole models as L-convs, with proof, and L-convs as plain operators."""

from lconv_fast.convert.check import Comparison, check
from lconv_fast.convert.conv import from_conv, to_conv
from lconv_fast.convert.gcn import from_gcn
from lconv_fast.convert.lower import lower
from lconv_fast.convert.project import project
from lconv_fast.convert.swap import Report, swap

__all__ = ["Comparison", "Report", "check", "from_conv", "from_gcn", "lower", "project", "swap", "to_conv"]
