"""Small reference networks of L-conv layers, to start from: a U-Net and a residual network, on 1 to 3 axes."""

from lconv_fast.nets.bases import equivariant, isotropic, with_laplacian
from lconv_fast.nets.blocks import ACTIVATIONS, NORMS, LBlock, ResidualBlock
from lconv_fast.nets.euclidean import EuclideanInvariants
from lconv_fast.nets.resnet import LResNet
from lconv_fast.nets.separable import SeparableLConv, separable
from lconv_fast.nets.unet import LUNet

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "EuclideanInvariants",
    "LBlock",
    "LResNet",
    "LUNet",
    "ResidualBlock",
    "SeparableLConv",
    "equivariant",
    "isotropic",
    "separable",
    "with_laplacian",
]
