"""Where noise changes a layer's loss: the Euler-Lagrange residual (eq. 21) as a heat map over a photograph.

Run: python examples/physics/robustness_map.py [folder]. Needs scikit-image and matplotlib. Writes robustness.png.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from skimage.data import astronaut

import lconv_fast as lc

matplotlib.use("Agg")
from matplotlib import pyplot


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "physics_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    photo = torch.from_numpy(np.ascontiguousarray(astronaut().transpose(2, 0, 1)))[None].double() / 255
    layer = lc.LConv2d(3, 8, "translation", padding_mode="replicate", bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[0] *= 0.02  # a loss of derivatives: flat regions satisfy its Euler-Lagrange equation
    found = lc.physics.robustness(lc.physics.QuadraticLagrangian.from_layer(layer), photo)
    sigma, changes = 1e-4, []
    with torch.no_grad():
        loss = layer(photo).square().sum()
        for _ in range(100):
            changes.append((layer(photo + sigma * torch.randn_like(photo)).square().sum() - loss).item())
    print(f"change of the loss under noise of {sigma}: standard deviation {np.std(changes):.3g} measured in 100 draws, "
          f"{sigma * found.number.item():.3g} = sigma |E|")  # fmt: skip
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    axes[0].imshow(photo[0].permute(1, 2, 0))
    image = axes[1].imshow(
        found.map[0].detach().clamp(max=float(torch.quantile(found.map.detach(), 0.99))), cmap="magma"
    )
    axes[1].set_title("|E|: where noise changes the loss")
    figure.colorbar(image, ax=axes[1], shrink=0.8)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(folder / "robustness.png", dpi=100)
    print("wrote", folder / "robustness.png")


if __name__ == "__main__":
    main()
