"""A free scalar field (Helmholtz) and a complex wave on 256 x 256: solutions, conserved currents and their divergence.

Run: python examples/physics/fields.py [folder]. Needs scipy and matplotlib. Writes helmholtz.png and wave.png.
"""

import math
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

import lconv_fast as lc

matplotlib.use("Agg")
from matplotlib import pyplot

P = lc.physics
SIZE = 256


def difference_matrix(size):
    """d f(x) = (f(x + 1) - f(x - 1)) / 2 on a periodic axis, as the library takes it."""
    return sparse.diags([0.5, -0.5, 0.5, -0.5], [1 - size, -1, 1, size - 1], shape=(size, size), format="csr")


def helmholtz(folder):
    """L = |grad phi|^2 - k^2 phi^2 - 2 j phi with two sources j: A phi = j by scipy, A = D^T D - k^2."""
    k2 = 0.02
    d, one = difference_matrix(SIZE), sparse.identity(SIZE)
    matrix = sum(m.T @ m for m in (sparse.kron(d, one), sparse.kron(one, d))) - k2 * sparse.identity(SIZE**2)
    source = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    y, x = np.mgrid[:SIZE, :SIZE]
    for cy, cx, sign in ((90, 80, 1.0), (170, 180, -1.0)):
        source += sign * torch.from_numpy(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60.0))
    phi = torch.from_numpy(spsolve(matrix.tocsc(), source.numpy().ravel()).reshape(1, 1, SIZE, SIZE))

    def density(f, df, _):
        return (df.square().sum(2) - k2 * f.square() - 2 * source * f).sum(1)

    residual = P.euler_lagrange(density, phi, padding_mode="circular")
    print(
        f"Helmholtz: |E| / |j| = {residual.norm() / source.norm():.1e} at scipy's solution of the same discrete action"
    )
    # Away from the sources, the momentum currents (stress) have no divergence; at the sources, their force.
    free = P.QuadraticLagrangian(-k2, torch.eye(2, dtype=torch.float64), padding_mode="circular")
    stress = P.stress_energy(free, phi, symmetric=True)
    divergence = P.divergence(stress, 2, "circular")[0, 1]
    quiet = source.abs() < 1e-10
    terms = [P.derivatives(stress[:, 1, a : a + 1], 2, "circular")[0, 0, a][quiet].norm().item() for a in range(2)]
    share = divergence[quiet].norm() / math.hypot(*terms)
    print(
        f"Helmholtz: divergence of the stress away from the sources, of its terms: {share:.1e} (differences of order 2)"
    )
    show(
        folder / "helmholtz.png",
        {
            "source": source,
            "phi": phi[0, 0],
            "|stress|": stress[0].square().sum((0, 1)).sqrt(),
            "divergence": divergence,
        },
    )


def wave(folder):
    """L = |phi_t|^2 - c^2 |phi_x|^2 - M^2 |phi|^2, complex, 256 points of space by 256 steps of time: U(1) charge."""
    speed, mass = 0.5, 0.1
    x = torch.arange(SIZE, dtype=torch.float64)

    def density(f, df, _):
        rates = df.abs().square()
        return (rates[:, :, 0] - speed**2 * rates[:, :, 1] - mass**2 * f.abs().square()).sum(1)

    def packet(center, wave_number, t):
        frequency = math.sqrt((speed * wave_number) ** 2 + mass**2)
        group = speed**2 * wave_number / frequency
        envelope = torch.exp(-((x - center - group * t) ** 2) / (2 * 14.0**2))
        return envelope * torch.exp(1j * (wave_number * (x - center) - frequency * t))

    slices = [(packet(80, 0.35, t) + 0.7 * packet(170, -0.25, t))[None, None] for t in (0.0, 1.0)]
    step = P.variational_step(density, accuracy=8, padding_mode="circular")
    turn = torch.tensor([[1j]], dtype=torch.complex128)
    charges, energies = [], []
    history = slices[:]
    for _ in range(SIZE - 2):
        history.append(step(history[-2], history[-1]))
        charges.append(step.charge(history[-2], history[-1], turn).item())
        energies.append(step.energy(history[-2], history[-1]).item())
    phi = torch.stack(history, 2)
    current = P.noether_current(density, phi, None, turn, accuracy=8, padding_mode="replicate")
    divergence = P.divergence(current, 8, "replicate")[0, 0]
    inside = (slice(8, -8), slice(8, -8))
    terms = [P.derivatives(current[:, 0, a : a + 1], 8, "replicate")[0, 0, a][inside] for a in range(2)]
    share = divergence[inside].norm() / math.hypot(*(t.norm().item() for t in terms))
    print(f"wave: charge drift {max(abs(c / charges[0] - 1) for c in charges):.1e}, ", end="")
    print(f"energy within {max(abs(e / energies[0] - 1) for e in energies):.1e}, in {SIZE - 2} steps")
    print(f"wave: divergence of the U(1) current, of its terms: {share:.1e} (steps of order 2 in time)")
    charge, flow = current[0, 0]
    pictures = {"Re phi (time down)": phi[0, 0].real, "charge density": charge, "flow": flow, "divergence": divergence}
    show(folder / "wave.png", pictures)


def show(path, pictures):
    figure, axes = pyplot.subplots(1, len(pictures), figsize=(3.6 * len(pictures), 3.4), layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        inside = picture[4:-4, 4:-4]
        bound = inside.abs().max().item()
        image = axis.imshow(picture.numpy(), cmap="RdBu", vmin=-bound, vmax=bound)
        axis.set_title(title)
        axis.set_axis_off()
        figure.colorbar(image, ax=axis, shrink=0.7)
    figure.savefig(path, dpi=100)
    print("wrote", path)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "physics_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    helmholtz(folder)
    wave(folder)


if __name__ == "__main__":
    main()
