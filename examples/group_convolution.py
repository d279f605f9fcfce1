"""Theorem 1 of Dehmamy et al. 2021 in pictures, after its figure 2: a group convolution by composed L-convs.

python examples/group_convolution.py [group_convolution.png]

The group is SO(2) on the plane. Left: a kernel on the group, and the local kernels of lemma 1 at u_k. Middle: an image,
its exact convolution, and the L-convs' result. Right: the error against the size eta of the cells, with the moving of
lemma 2 all but exact (it falls by lemma 1, as eta^2) and by eq. (13) as it stands (as eta).
"""

from __future__ import annotations

import math
import sys

import matplotlib
import torch
from torch import Tensor

import lconv_fast as lc

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

SIDE = 20
SUPPORT = [(-0.6, 0.6)]  # cuts the kernel off: lemma 1 asks for no more


def kernel(t: Tensor) -> Tensor:
    """Two bells, of opposite sign."""
    angle = t[:, 0]
    return torch.exp(-(((angle - 0.4) / 0.25) ** 2)) - 0.6 * torch.exp(-(((angle + 0.5) / 0.2) ** 2))


def image() -> Tensor:
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    spots = [(4.0, 0.0, 2.0), (-3.0, 4.0, 1.5)]
    return sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * w**2)) for a, b, w in spots)[None, None]  # type: ignore[index]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    f = image()
    generators = lc.AffineGenerators.named("rotation", 2, coordinate_scale=1.0)
    dense = generators.to_dense((SIDE, SIDE))[0]
    exact = lc.gconv.integrate(
        kernel, f, lambda f, t: (torch.matrix_exp(t[0] * dense) @ f.flatten()).reshape(f.shape), SUPPORT, 24
    )

    def error(y: Tensor) -> float:
        return ((y - exact).norm() / exact.norm()).item()

    etas, curves = [0.1 / 2**k for k in range(4)], {}
    for name, order in (("degree 1, eq. (13)", 1), ("degree 4", 4)):
        found = []
        for eta in etas:
            layer = lc.gconv.approximate(kernel, generators, SUPPORT, eta, order=order)
            y = layer(f)
            found.append(error(y))
            share = layer.kernel_error / layer.bound
            print(
                f"{name:20} eta {layer.eta:.3f}  {len(layer.elements):3} elements  error {error(y):.2e}  "
                f"int |kappa - kappa~|^2 = {layer.kernel_error:.2e} = {share:.2f} of the bound"
            )
        curves[name] = found

    coarse = lc.gconv.approximate(kernel, generators, SUPPORT, 0.05, order=4)
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.2))
    t = torch.linspace(-1.2, 1.2, 400)
    axes[0].plot(t, kernel(t[:, None]), "k")
    width = 2 * coarse.eta
    axes[0].bar(coarse.elements[:, 0], coarse.coefficients / width, width * 0.9, alpha=0.4)
    axes[0].set(title="kernel, local kernels at u_k", xlabel="angle")
    for place, picture, title in zip(
        axes[1:4], (f, exact, coarse(f)), ("f", "integrated over the group", "composed L-convs"), strict=True
    ):
        place.imshow(picture[0, 0], cmap="viridis")
        place.set_title(title)
        place.axis("off")
    for name, values in curves.items():
        slope = math.log2(values[-2] / values[-1])
        axes[4].loglog(etas, values, "o-", label=f"{name}: eta^{slope:.1f}")
    axes[4].set(title="relative error", xlabel="eta")
    axes[4].xaxis.set_minor_formatter(NullFormatter())
    axes[4].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "group_convolution.png", dpi=100)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
