"""Equivariance measured: layer(turned f) against the turned layer(f), for layers, invariants and whole networks.

The picture is the demo's smoothed photograph, turned by 25 degrees by Fourier shears; relative RMS in the inner disc,
float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.demo.equivariance import ANGLE, DISC, smooth_photograph, turn

SIZES = (64, 128, 256)


def layer(basis: Callable[[int], lc.Generators]) -> Callable[[int], Callable[[Tensor], Tensor]]:
    return lambda size: lc.LConv2d(3, 8, basis(size), bias=False).double()


def about_centre(size: int) -> lc.Generators:
    generators = nets.equivariant("rotation")
    assert isinstance(generators, lc.AffineGenerators)
    return nets.with_laplacian(generators)


def network(basis: lc.Generators, activation: str | type[torch.nn.Module]) -> Callable[[Tensor], Tensor]:
    return nets.LResNet(3, 8, basis, widths=(8, 8), read_out="points", norm="instance", activation=activation).double()


def one_stage(size: int) -> Callable[[Tensor], Tensor]:
    first, second = (lc.LConv2d(ins, 8, nets.isotropic(2, 1), bias=False) for ins in (3, 8))
    return torch.nn.Sequential(first, lc.DifferentialInvariants(8), second).double()


CASES: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "layer, rotation + laplacian": layer(about_centre),
    "layer, isotropic": layer(lambda size: nets.isotropic(2)),
    'lc.invariants(f, "se")': lambda size: lc.invariants,
    "L-conv, DifferentialInvariants, L-conv, of the Laplacian": one_stage,
    "LResNet, isotropic, gelu": lambda size: network(nets.isotropic(2), "gelu"),
    "LResNet, isotropic, invariants": lambda size: network(nets.isotropic(2), lc.DifferentialInvariants),
    "LResNet, laplacian (not equivariant)": lambda size: network(lc.generators.named("laplacian", 2), "gelu"),
}


def relative(a: Tensor, b: Tensor, inside: Tensor) -> float:
    """Root mean square over channels of the relative error of each: channels have different units."""
    a, b = a[..., inside], b[..., inside]
    return ((a - b).square().sum((0, 2)) / b.square().sum((0, 2)).clamp_min(1e-300)).mean().sqrt().item()


def main() -> None:
    print(f"| turned by {ANGLE:g} degrees | " + " | ".join(f"{size} x {size}" for size in SIZES) + " | 90 degrees |")
    print("| --- " * (len(SIZES) + 2) + "|")
    for name, make in CASES.items():
        errors = []
        for size in SIZES:
            f = smooth_photograph(size)
            x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
            inside = x[:, None].square() + x.square() <= (DISC * size) ** 2
            torch.manual_seed(0)
            module = make(size)
            with torch.no_grad():
                errors.append(relative(module(turn(f, ANGLE)), turn(module(f), ANGLE), inside))
                if size == SIZES[0]:
                    quarter = relative(module(f.rot90(1, (2, 3))), module(f).rot90(1, (2, 3)), inside)
        print(f"| {name} | " + " | ".join(f"{e:.1e}" for e in errors) + f" | {quarter:.0e} |")


if __name__ == "__main__":
    main()
