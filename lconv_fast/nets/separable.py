"""L-convs with the parameters of a single matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_module, check_on_grid, has_bias, positive_int
from lconv_fast.functional import lconv
from lconv_fast.generators import Generators
from lconv_fast.generators.normalise import rates
from lconv_fast.modules import LConv1d, LConv2d, LConv3d


class SeparableLConv(nn.Module):
    """y = W^0 (f + sum_i a_i o L_i f) + bias: each channel has one operator 1 + sum_i a_i L_i of its own.

    An L-conv with W^i = W^0 diag(a_i): C_out C_in + n_L C_in parameters in the place of (n_L + 1) C_out C_in; the same
    kernel and nearly the same time. What depthwise-separable convolutions are to convolutions.

    Args:
        in_channels, out_channels: numbers of channels.
        generators: on a grid of any number of axes.
        bias: adds a learnable bias, 0 at first.

    Attributes:
        weight0: W^0, (out_channels, in_channels).
        scale: a, (n_L, in_channels).

    Shape: (N, in_channels, *spatial) -> (N, out_channels, *spatial).
    """

    bias: nn.Parameter | None

    def __init__(self, in_channels: int, out_channels: int, generators: Generators, *, bias: bool = True) -> None:
        super().__init__()
        if not isinstance(generators, Generators):
            raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
        check_on_grid(generators)
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        self.generators = generators
        self.weight0 = nn.Parameter(torch.empty(out_channels, in_channels))
        self.scale = nn.Parameter(torch.empty(generators.num_generators, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if has_bias(bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Keeps the variance of white noise, as LConv: Var W^0 = 1 / ((n_L + 1) fan_in), Var a_i = 1 / r_i."""
        with torch.no_grad():
            noise = rates(self.generators)
            self.weight0.normal_(std=((len(noise) + 1) * self.in_channels) ** -0.5)
            for row, r in zip(self.scale, noise, strict=True):
                row.normal_(std=r**-0.5)
            if self.bias is not None:
                self.bias.zero_()

    def composed_weight(self) -> Tensor:
        """W^0, W^1, ...: (n_L + 1, out_channels, in_channels)."""
        return torch.cat([self.weight0[None], self.weight0 * self.scale[:, None]])

    def forward(self, input: Tensor) -> Tensor:
        return lconv(input, self.composed_weight(), self.generators, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"


def separable(model: nn.Module) -> nn.Module:
    """Puts a SeparableLConv, with fresh weights and the same generators, in the place of each LConv within the model.

    Strided and grouped LConvs stay as they are. Changes the model, and returns it.
    """
    check_module("model", model)
    for name, child in model.named_children():
        if not isinstance(child, LConv1d | LConv2d | LConv3d):
            separable(child)
        elif child.groups == 1 and set(child.stride) == {1}:
            layer = SeparableLConv(child.in_channels, child.out_channels, child.generators, bias=child.bias is not None)
            like: Tensor = child.weight
            setattr(model, name, layer.to(like.device, like.dtype))
    return model
