"""nn.Conv as an L-conv whose generators are shifts, and back: eq. (18) of Dehmamy et al. 2021."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lconv_fast.convert.frame import CONVS, Frame, Kernel, LConv, framed
from lconv_fast.convert.taps import constant_taps, mode_of
from lconv_fast.generators import StencilGenerators


def from_conv(conv: Any) -> LConv:
    """The L-conv with shift generators that equals a convolution, eq. (18) of Dehmamy et al. 2021.

        sum_k K_k f(x + o_k) = W^0 f + sum_i W^i (L_i f),   (L_i f)(x) = f(x + o_i),   W^i = K_i,   o_0 = 0

    Outputs and all gradients are those of the convolution. The centre tap is W^0; a kernel of K taps has K - 1
    generators (a 1 x 1 kernel one that is zero). Numbers are copied; requires_grad and training mode stay.

    Args:
        conv: nn.Conv1d, nn.Conv2d or nn.Conv3d with any stride, groups, dilation, padding (numbers, "same", "valid"),
            padding_mode and bias.

    Returns:
        LConv1d, LConv2d or LConv3d. Where the padding is not the kernel's natural one, dilation (kernel_size - 1) in
        all, a subclass that pads its input or drops outputs, so that sizes are those of the convolution.

    Raises:
        TypeError: for anything but these three (transposed, lazy and quantized convolutions, and subclasses with a
            forward of their own), and for complex weights.
    """
    check_conv(conv)
    kernel = Kernel.of(conv)
    frame = Frame.of(kernel, kernel.first())
    if not (frame.inside and kernel.holds(frame.center)):
        frame = Frame.of(kernel, (0,) * kernel.ndim)
    offsets = kernel.offsets(frame.center)
    origin = offsets.index((0,) * kernel.ndim)
    others = offsets[:origin] + offsets[origin + 1 :]
    coefficients = torch.eye(len(others)) if others else torch.zeros(1, 1)
    generators = StencilGenerators(coefficients, torch.tensor(others or offsets), padding_mode=frame.padding_mode)
    layer = like_conv(conv, frame, generators)
    with torch.no_grad():
        taps = conv.weight.flatten(2).movedim(2, 0)  # (K, out, in / groups)
        layer.weight.zero_()
        layer.weight[0] = taps[origin]
        layer.weight[1 : len(offsets)] = torch.cat([taps[:origin], taps[origin + 1 :]])
    return layer


def to_conv(layer: LConv) -> nn.Module:
    """The convolution that equals an L-conv with constant generators: the inverse of `from_conv`.

    The kernel is W^0 at offset 0 plus sum_i s[i,k] W^i at offset o_k. Shifts, constant stencils and fields that do not
    depend on x (the translations) are constant. The kernel is symmetric about the point, with zeros where no tap is,
    unless padding="same" can stand for it.

    Raises:
        TypeError: for what is no LConv1d, LConv2d or LConv3d.
        ValueError: where the generators depend on x, the layer has an activation, or no padding of nn.Conv gives the
            boundary.
    """
    if not isinstance(layer, LConv):
        raise TypeError(f"layer: expected LConv1d, LConv2d or LConv3d, got {type(layer).__name__}")
    constant = constant_taps(layer.generators)
    if constant is None:
        raise ValueError(f"layer: expected constant generators, got {layer.generators}")
    if layer.activation is not None:
        raise ValueError(f"layer: expected no activation, which a convolution has not, got {layer.activation!r}")
    offsets, s = constant
    weight = layer.weight.detach()
    # (1 + K, out, in / groups): W^0 is the tap at 0
    values = torch.cat([weight[:1], torch.einsum("ik,ioc->koc", s.to(weight.dtype).detach(), weight[1:])])
    offsets = [(0,) * layer.ndim, *offsets]

    frame: Frame | None = getattr(layer, "frame", None)
    if frame is not None:
        kernel, center = frame.kernel, frame.center
        mode = kernel.mode
        if not set(offsets) <= set(kernel.offsets(center)):
            raise ValueError(f"layer: expected generators within the kernel {kernel.size} it stands for, got {offsets}")
    else:
        kernel, center = _symmetric(offsets, layer.stride, mode_of(layer.generators.stencil()))
        mode = kernel.mode
    place = {offset: k for k, offset in enumerate(kernel.offsets(center))}
    taps = weight.new_zeros(len(place), *weight.shape[1:])
    taps.index_add_(0, torch.tensor([place[o] for o in offsets], device=taps.device), values)
    if all(low == high for low, high in kernel.padding):
        padding: Any = tuple(low for low, _ in kernel.padding)
    else:
        padding = "same"
    conv: Any = CONVS[layer.ndim](
        layer.in_channels,
        layer.out_channels,
        kernel.size,
        stride=kernel.stride,
        padding=padding,
        dilation=kernel.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(taps.movedim(0, 2).reshape(conv.weight.shape))
        if layer.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv.train(layer.training)


def _symmetric(offsets: list[tuple[int, ...]], stride: tuple[int, ...], mode: str) -> tuple[Kernel, tuple[int, ...]]:
    """The smallest kernel with the natural padding of nn.Conv that has these taps, and its point at offset 0."""
    dilation, low, high = [], [], []
    for axis in zip(*offsets, strict=True):
        dilation.append(math.gcd(*axis) or 1)
        low.append(-min(axis))
        high.append(max(axis))
    spans = [a + b for a, b in zip(low, high, strict=True)]
    same = set(stride) == {1} and all(a == span // 2 for a, span in zip(low, spans, strict=True))
    if not same:
        low = high = [max(a, b) for a, b in zip(low, high, strict=True)]
    size = tuple((a + b) // d + 1 for a, b, d in zip(low, high, dilation, strict=True))
    kernel = Kernel(size, tuple(dilation), tuple(zip(low, high, strict=True)), tuple(stride), mode)
    return kernel, tuple(low)


def check_conv(conv: nn.Module) -> None:
    """Raises TypeError unless `conv` computes what nn.Conv1d, nn.Conv2d or nn.Conv3d does."""
    reason = unlike_conv(conv)
    if reason:
        raise TypeError(f"conv: expected nn.Conv1d, nn.Conv2d or nn.Conv3d, got {type(conv).__name__}: {reason}")


def unlike_conv(conv: nn.Module) -> str | None:
    """Why `conv` need not compute what nn.Conv does; None where it does."""
    base = next((c for c in CONVS.values() if isinstance(conv, c)), None)
    if base is None:
        return "it is none of the three"
    if any(nn.parameter.is_lazy(p) for p in conv.parameters()):
        return "its channels are not known before the first input"
    kind: Any = type(conv)
    own = [name for name in ("forward", "_conv_forward", "__call__") if getattr(kind, name) is not getattr(base, name)]
    own += [name for name in ("forward", "_conv_forward") if name in vars(conv)]
    if own:
        return f"it has a {own[0]} of its own"
    if not torch.is_floating_point(conv.weight):  # type: ignore[arg-type]
        return f"its weight is {conv.weight.dtype}"
    return None


def like_conv(conv: Any, frame: Frame, generators: Any, **keywords: Any) -> LConv:
    """An L-conv with the channels, groups, bias, dtype, device and flags of a convolution; its weight is still free."""
    weight = conv.weight
    keywords |= {"groups": conv.groups, "bias": conv.bias is not None, "device": weight.device, "dtype": weight.dtype}
    layer = framed(frame, conv.in_channels, conv.out_channels, generators, **keywords)
    if conv.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(conv.bias)  # type: ignore[union-attr]
        layer.bias.requires_grad_(conv.bias.requires_grad)  # type: ignore[union-attr]
    for name, parameter in layer.named_parameters(recurse=False):
        if name != "bias":
            parameter.requires_grad_(weight.requires_grad)
    return layer.train(conv.training)
