"""Models drawn at random on grids of 1 to 3 axes, with what their windows must give: how far each sees, its levels."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import nn

import lconv_fast as lc
from lconv_fast.ops.boundary import PADDING_MODES

LAYERS = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}
MODES = tuple(PADDING_MODES)
KINDS = ("affine", "scaled", "accurate", "field", "stencil", "constant", "sampled", "laplacian")
POOLS = {
    "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    "average": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
}
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UPS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Skip(nn.Module):
    """Down by 2, a body on the coarse grid, up by nearest values or a transposed convolution, beside the fine grid."""

    def __init__(self, body: nn.Module, channels: int, ndim: int, learned: bool, tail: nn.Module) -> None:
        super().__init__()
        self.body, self.tail, self.ndim = body, tail, ndim
        self.up = UPS[ndim - 1](channels, channels, 2, 2) if learned else nn.Upsample(scale_factor=2)

    def forward(self, f):
        pool = (nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d)[self.ndim - 1]
        up = self.up(self.body(pool(f, 2, ceil_mode=True)))
        for a, size in enumerate(f.shape[2:], 2):
            up = up.narrow(a, 0, size)
        return self.tail(torch.cat([f, up], 1))


@dataclass
class Drawn:
    """A model on a grid `full`; `reach` in points of its input; `step` of its output."""

    ndim: int
    mode: str
    full: tuple[int, ...]
    model: nn.Module | None = None
    step: int = 1
    reach: int = 0
    names: list[str] = field(default_factory=list)


def draw(seed: int) -> Drawn:
    r = random.Random(seed)
    torch.manual_seed(seed)
    ndim = r.choice((1, 2, 2, 3))
    mode = r.choice(MODES)
    low, high = {1: (90, 140), 2: (56, 76), 3: (34, 44)}[ndim]
    drawn = Drawn(ndim, mode, tuple(r.randint(low, high) for _ in range(ndim)))
    sizes, channels, parts = drawn.full, 2, []

    def lconv(ins: int, outs: int, grid: tuple[int, ...], stride: int = 1):
        kind = r.choice(KINDS)
        drawn.names.append(f"{kind}/{stride}")
        keywords = {"padding_mode": mode}
        taps = [[r.randint(-1, 1) for _ in range(ndim)] for _ in range(3)]
        generators = {
            "affine": lambda: lc.AffineGenerators.named("affine", ndim, learnable=True, **keywords),
            "scaled": lambda: lc.AffineGenerators.named("gl", ndim, coordinate_scale=5.0, **keywords),
            "accurate": lambda: lc.AffineGenerators.named("scaling", ndim, accuracy=4, **keywords),
            "field": lambda: lc.FieldGenerators(torch.randn(2, ndim, *grid), learnable=True, **keywords),
            "stencil": lambda: lc.StencilGenerators(torch.randn(2, 3, *grid), taps, learnable=True, **keywords),
            "constant": lambda: lc.StencilGenerators(torch.randn(2, 3), taps, **keywords),
            "sampled": lambda: lc.DifferentialGenerators(
                torch.randn(1, 1, *grid), [[1] + [0] * (ndim - 1)], **keywords
            ),
            "laplacian": lambda: "laplacian",
        }[kind]()
        drawn.reach += drawn.step * (2 if kind == "accurate" else 1)
        extra = keywords if isinstance(generators, str) else {}
        return LAYERS[ndim](ins, outs, generators, stride=stride, **extra)

    def down(grid: tuple[int, ...], stride: int, ceil: bool) -> tuple[int, ...]:
        return tuple(-(-size // stride) if ceil else size // stride for size in grid)

    for _ in range(r.randint(2, 3)):
        choice = r.choice(("lconv", "strided", "pool", "conv", "skip", "residual"))
        room = drawn.step * 2 <= 4
        if choice == "strided" and room:
            stride = r.choice([s for s in (2, 3, 4) if s * drawn.step <= 4])
            parts.append(lconv(channels, 3, sizes, stride))
            sizes, channels, drawn.step = down(sizes, stride, True), 3, drawn.step * stride
        elif choice == "pool" and room:
            stride, ceil = r.choice([s for s in (2, 3) if s * drawn.step <= 4]), r.random() < 0.5
            parts.append(POOLS[r.choice(list(POOLS))][ndim - 1](stride, ceil_mode=ceil))
            drawn.names.append(f"pool/{stride}{'c' if ceil else 'f'}")
            drawn.reach += drawn.step * (stride - 1)
            sizes, drawn.step = down(sizes, stride, ceil), drawn.step * stride
        elif choice == "conv":
            parts.append(CONVS[ndim - 1](channels, 3, 3, padding=1))
            drawn.reach, channels = drawn.reach + drawn.step, 3
        elif choice == "skip" and room:
            step = drawn.step
            drawn.step = 2 * step
            body = nn.Sequential(lconv(channels, channels, down(sizes, 2, True)), nn.ReLU())
            drawn.step = step
            drawn.reach += 2 * step
            parts.append(Skip(body, channels, ndim, r.random() < 0.5, lconv(2 * channels, 3, sizes)))
            channels = 3
            drawn.names.append("skip")
        parts.append(lconv(channels, 3, sizes))
        channels = 3
        parts.append(nn.Tanh())
    drawn.model = nn.Sequential(*parts).double()
    return drawn
