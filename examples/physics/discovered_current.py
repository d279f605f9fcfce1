"""The whole road on simulated wave data: pairs -> discovered generator -> fitted Lagrangian -> conserved current.

1. Snapshots of standing waves and the same snapshots turned: `lc.discovery.discover` finds so(2), without labels.
2. A quadratic Lagrangian h^ab d_a f d_b f + m2 f^2 is fitted to the snapshots by least squares of its Euler-Lagrange
   residual, which is linear in (h, m2).
3. Noether currents of the discovered generator under the fitted Lagrangian: their divergence, beside a control.
4. The second way: `discover_by_noether` from the Lagrangian and the snapshots alone.

Run: python examples/physics/discovered_current.py [folder]. Needs scipy and matplotlib. Writes discovered_current.png.
"""

import math
import sys
from pathlib import Path

import matplotlib
import torch

import lconv_fast as lc

matplotlib.use("Agg")
from matplotlib import pyplot

P = lc.physics
SIZE, WAVE = 64, 0.45


def snapshots(count, seed, angles):
    """Sums of plane waves of one wave number in random directions, and each turned by its angle about the centre."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    before, after = torch.zeros(2, count, 1, SIZE, SIZE, dtype=torch.float64)
    for n in range(count):
        for _ in range(8):
            direction, phase = (torch.rand(2, generator=random, dtype=torch.float64) * 2 * math.pi).tolist()
            weight = torch.randn((), generator=random, dtype=torch.float64)
            for fields, turn in ((before, 0.0), (after, angles[n])):
                c, s = math.cos(direction + turn), math.sin(direction + turn)
                fields[n, 0] += weight * torch.cos(WAVE * (c * y + s * x) + phase)
    return before, after


def fit(fields):
    """The (h, m2) of least |E| relative to its terms: the last right singular vector of [E_k]."""
    units = []
    inside = (..., slice(8, -8), slice(8, -8))
    for a, b in ((0, 0), (0, 1), (1, 1)):
        h = torch.zeros(2, 2, dtype=torch.float64)
        h[a, b] = h[b, a] = 0.5 if a != b else 1.0
        units.append(P.euler_lagrange(P.QuadraticLagrangian(0.0, h, accuracy=8), fields)[inside].flatten())
    units.append(2 * fields[inside].flatten())
    rows = torch.stack(units, 1)
    sizes = rows.norm(dim=0)
    _, singular, vectors = torch.linalg.svd(rows / sizes, full_matrices=False)
    h00, h01, h11, m2 = (vectors[-1] / sizes / (vectors[-1] / sizes)[0]).tolist()
    print(f"fitted: h = [[{h00:.4f}, {h01 / 2:.4f}], [{h01 / 2:.4f}, {h11:.4f}]], m2 = {m2:.5f}, true {-(WAVE**2):.5f}")
    print(f"of its residual: last two singular values {singular[-2]:.2e}, {singular[-1]:.1e}")
    h = torch.tensor([[h00, h01 / 2], [h01 / 2, h11]], dtype=torch.float64)
    return P.QuadraticLagrangian(m2, h, accuracy=8)


def divergence_share(lagrangian, fields, generators):
    """|div J| relative to its terms, away from the border."""
    inside = (..., slice(10, -10), slice(10, -10))
    current = P.noether_current(lagrangian, fields, generators, accuracy=8)
    terms = [P.derivatives(current[:, :, a], 8)[:, :, a][inside].norm().item() for a in range(2)]
    divergence = P.divergence(current, 8)
    return divergence[inside].norm().item() / math.hypot(*terms), current, divergence


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "physics_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    angles = [0.05, -0.08, 0.12, 0.1, -0.06, 0.07]
    fields, turned = snapshots(len(angles), 0, angles)
    found = lc.discovery.discover(fields, turned, progress=False)
    print(found.summary())
    rotation = lc.AffineGenerators.named("rotation")
    print("angle to so(2), degrees:", lc.discovery.alignment(found.generators, rotation, (SIZE, SIZE)).angles)
    lagrangian = fit(fields)
    generators = found.generators.double()
    share, current, divergence = divergence_share(lagrangian, fields, generators)
    control, _, _ = divergence_share(lagrangian, fields, lc.AffineGenerators.named("scaling").double())
    print(f"|div J| of its terms: {share:.1e} for the discovered generator, {control:.1e} for scaling (control)")
    second = P.discover_by_noether(lagrangian, fields)
    values = ", ".join(f"{s:.1e}" for s in second.singular_values)
    print(f"from |div J| alone: {second.num_generators} generators; singular values {values}")

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    axes[0].imshow(fields[0, 0], cmap="gray")
    step = slice(4, -4, 5)
    rows, columns = torch.meshgrid(torch.arange(SIZE)[step], torch.arange(SIZE)[step], indexing="ij")
    axes[0].quiver(
        columns, rows, current[0, 0, 1, step, step], current[0, 0, 0, step, step], color="tab:orange", angles="xy"
    )
    axes[0].set_title("data, and the current")
    bound = divergence[0, 0, 10:-10, 10:-10].abs().max().item()
    image = axes[1].imshow(divergence[0, 0], cmap="RdBu", vmin=-bound, vmax=bound)
    axes[1].set_title("its divergence (the border is padded)")
    figure.colorbar(image, ax=axes[1], shrink=0.8)
    axes[2].semilogy(range(1, 7), second.singular_values, "o-")
    axes[2].set_xlabel("direction in the affine algebra")
    axes[2].set_title("|div J| / its terms")
    figure.savefig(folder / "discovered_current.png", dpi=100)
    print("wrote", folder / "discovered_current.png")


if __name__ == "__main__":
    main()
