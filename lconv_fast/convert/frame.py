"""Where the outputs of nn.Conv lie among those of an L-conv, and L-convs that stand at just those points.

With n points of padding in all on an axis, a kernel of K taps and dilation D gives
floor((size + n - D (K - 1) - 1) / stride) + 1 outputs, an L-conv ceil(size / stride): the same if n = D (K - 1), the
padding that nn.Conv calls "same". For any other, the L-conv runs on a padded array, and outputs that the convolution
lacks are dropped.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lconv_fast.grid import padding_mode
from lconv_fast.modules import LConv1d, LConv2d, LConv3d

CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LConv = LConv1d | LConv2d | LConv3d


@dataclass(frozen=True)
class Kernel:
    """The geometry of nn.Conv: for each axis the taps, dilation, padding (low, high) and stride."""

    size: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    stride: tuple[int, ...]
    mode: str  # padding_mode

    @classmethod
    def of(cls, conv: Any) -> Kernel:
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if conv.padding == "same":
            padding = [(span // 2, span - span // 2) for span in spans]
        elif conv.padding == "valid":
            padding = [(0, 0)] * len(spans)
        else:
            padding = [(p, p) for p in conv.padding]
        return cls(conv.kernel_size, conv.dilation, tuple(padding), conv.stride, conv.padding_mode)

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def span(self) -> tuple[int, ...]:
        """Points from the first tap to the last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True))

    @property
    def excess(self) -> tuple[int, ...]:
        """span - padding: what the output is shorter than the input, at stride 1."""
        return tuple(span - low - high for span, (low, high) in zip(self.span, self.padding, strict=True))

    def offsets(self, center: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The taps in row-major order, seen from the point `center` of the kernel."""
        axes = [[d * k - c for k in range(count)] for d, count, c in zip(self.dilation, self.size, center, strict=True)]
        return list(itertools.product(*axes))

    def holds(self, center: tuple[int, ...]) -> bool:
        """Whether one of the taps is at `center`."""
        return (0,) * self.ndim in self.offsets(center)

    def middle(self) -> tuple[int, ...]:
        return tuple(span // 2 for span in self.span)

    def first(self) -> tuple[int, ...]:
        """The point of the kernel that lies on the first point of the input at the first output."""
        return tuple(low for low, _ in self.padding)


@dataclass(frozen=True)
class Frame:
    """An L-conv's point at `center` of the kernel, for the outputs of a convolution.

    The input is padded as for the convolution, then by `fill` zeros at the low end, which make the first output's place
    a multiple of the stride; the L-conv's first `drop` outputs and those beyond the convolution's last are dropped.
    """

    kernel: Kernel
    center: tuple[int, ...]
    inside: bool  # the L-conv's own boundary shows what padding would: the input stays as it is
    fill: tuple[int, ...]
    drop: tuple[int, ...]

    @classmethod
    def of(cls, kernel: Kernel, center: tuple[int, ...], boundary: str | None = None) -> Frame:
        """boundary: the padding mode of the L-conv's generators; None: whatever the frame asks for."""
        inside = center == kernel.first() and min(kernel.excess) >= 0
        if boundary not in (None, kernel.mode) and any(map(any, kernel.padding)):
            inside = False
        # A mirror needs more points than it shows: fewer may be there than the taps of dropped outputs reach.
        if (
            padding_mode(kernel.mode).boundary.bounded
            and any(kernel.excess)
            and any(low or high for low, high in kernel.padding)
        ):
            inside = False
        start = (0,) * kernel.ndim if inside else center
        fill = tuple(-c % s for c, s in zip(start, kernel.stride, strict=True))
        drop = tuple((c + a) // s for c, a, s in zip(start, fill, kernel.stride, strict=True))
        return cls(kernel, center, inside, fill, drop)

    @property
    def trivial(self) -> bool:
        """Whether the L-conv's outputs are the convolution's as they stand."""
        return self.inside and not any(self.kernel.excess)

    @property
    def padding_mode(self) -> str:
        """What generators shall see outside the array they run on."""
        return self.kernel.mode if self.inside and any(map(any, self.kernel.padding)) else "zeros"

    def padded(self, input: Tensor) -> Tensor:
        if self.inside:
            return input
        widths = [w for low_high in reversed(self.kernel.padding) for w in low_high]
        if any(widths):
            input = F.pad(input, widths, "constant" if self.kernel.mode == "zeros" else self.kernel.mode)
        zeros = [w for fill in reversed(self.fill) for w in (fill, 0)]
        return F.pad(input, zeros) if any(zeros) else input

    def cropped(self, output: Tensor, spatial: tuple[int, ...]) -> Tensor:
        """The convolution's outputs for an input of extents `spatial`."""
        for axis, size in enumerate(spatial):
            count = (size - self.kernel.excess[axis] - 1) // self.kernel.stride[axis] + 1
            output = output.narrow(axis - len(spatial), self.drop[axis], count)
        return output


class _Framed(nn.Module):
    """An L-conv at the output points of a convolution whose padding is not the natural one: see Frame.

    Takes the arguments of LConv, and `frame`. Raises ValueError for inputs that are smaller than the kernel, and
    TypeError for a residual.
    """

    frame: Frame
    ndim: int

    def __init__(self, *args: Any, frame: Frame, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.frame = frame

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        shape, name = tuple(input.shape), type(self).__name__
        if residual is not None:
            raise TypeError(f"{name}: expected no residual beside a convolution's padding; add it to the output")
        if len(shape) not in (self.ndim + 1, self.ndim + 2) or shape[-self.ndim - 1] != self.in_channels:
            raise ValueError(
                f"{name}: expected input with {self.in_channels} channels and {self.ndim} spatial axes, got {shape}"
            )
        spatial = shape[-self.ndim :]
        if any(size <= excess for size, excess in zip(spatial, self.frame.kernel.excess, strict=True)):
            raise ValueError(
                f"{name}: expected more than {self.frame.kernel.excess} points on the axes, as many as the kernel is "
                f"larger than the padding, got {shape}"
            )
        return self.frame.cropped(super().forward(self.frame.padded(input)), spatial)

    def extra_repr(self) -> str:
        kernel = self.frame.kernel
        return f"{super().extra_repr()}, kernel_size={kernel.size}, padding={kernel.padding}"


class FramedLConv1d(_Framed, LConv1d):
    __doc__ = f"{_Framed.__doc__}"


class FramedLConv2d(_Framed, LConv2d):
    __doc__ = f"{_Framed.__doc__}"


class FramedLConv3d(_Framed, LConv3d):
    __doc__ = f"{_Framed.__doc__}"


PLAIN: dict[int, type[Any]] = {1: LConv1d, 2: LConv2d, 3: LConv3d}
FRAMED: dict[int, type[Any]] = {1: FramedLConv1d, 2: FramedLConv2d, 3: FramedLConv3d}


def framed(frame: Frame, in_channels: int, out_channels: int, generators: Any, **keywords: Any) -> LConv:
    """The L-conv whose outputs stand where those of the convolution did: of the plain class where it can be."""
    keywords["stride"] = frame.kernel.stride
    ndim = frame.kernel.ndim
    # The initial weights are replaced by what was asked for: no draw from the random numbers shall tell of them.
    with torch.random.fork_rng(devices=[]):
        if frame.trivial:
            return PLAIN[ndim](in_channels, out_channels, generators, **keywords)
        return FRAMED[ndim](in_channels, out_channels, generators, frame=frame, **keywords)
