"""Every public callable with arguments that fit, of the smallest size; what the sweep of wrong ones starts from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import lconv_fast as lc
from lconv_fast.sharding import cost

SPATIAL, EDGES = (6, 5), torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
X = torch.randn(2, 2, *SPATIAL, generator=torch.Generator().manual_seed(0))
Arguments = Callable[[], dict[str, Any]]


def se(**keywords: Any) -> lc.AffineGenerators:
    return lc.AffineGenerators.named("se", **keywords)


def graph() -> lc.GraphGenerators:
    return lc.GraphGenerators(EDGES, torch.ones(1, 4), 3)


def layer(**keywords: Any) -> lc.LConv2d:
    return lc.LConv2d(2, 2, "se", **keywords)


def field() -> lc.FieldGenerators:
    return lc.FieldGenerators(torch.randn(1, 2, *SPATIAL))


def lagrangian() -> Any:
    return lc.physics.QuadraticLagrangian(torch.ones(2, 2), torch.eye(2))


def step() -> Any:
    return lc.physics.variational_step(lagrangian())


def streamed() -> Any:
    return lc.stream(layer().eval(), tile=(4, 4), progress=False)


def swapped(generators: str) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    lc.convert.swap(model, generators)
    return model


@functools.cache
def mesh() -> Any:
    """Of this process alone, which is one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return torch.distributed.init_device_mesh("cpu", (1,), mesh_dim_names=("x",))


def plan() -> Any:
    return lc.regions(layer(), (1, 2, *SPATIAL))


def bell(t: torch.Tensor) -> torch.Tensor:
    return (-t.square().sum(1)).exp()


def unscrambled() -> Any:
    place = np.arange(9)
    return lc.discovery.Unscrambled(np.array([[0, 1]]), place, (3, 3), 0.0)


def pairs() -> dict[str, torch.Tensor]:
    x = torch.randn(12, 1, 8, generator=torch.Generator().manual_seed(1))
    return {"x": x, "y": x.roll(1, -1)}


def layers() -> dict[str, Any]:
    return {
        "in_channels": 2, "out_channels": 2, "generators": "translation", "stride": 1, "groups": 1, "bias": True,
        "factorized": False, "activation": None, "device": None, "dtype": None, "accuracy": 2, "padding_mode": "zeros",
        "coordinate_scale": None, "learnable": False,
    }  # fmt: skip


NETWORK = {"in_channels": 2, "out_channels": 2, "generators": "laplacian", "ndim": 2, "widths": (4, 8), "norm": "group",
           "activation": "relu", "checkpoint": False, "accuracy": 2, "padding_mode": "zeros"}  # fmt: skip
SCHEME = {"accuracy": 2, "padding_mode": "zeros"}
WAVES = {"previous": X[..., 0], "current": X[..., 0], "time": 0.0}

# name: (what is called, arguments that fit)
PUBLIC: dict[str, tuple[Callable[..., Any], Arguments]] = {
    "LConv1d": (lc.LConv1d, layers),
    "LConv2d": (lc.LConv2d, layers),
    "LConv3d": (lc.LConv3d, layers),
    "LConv2d of an object": (lc.LConv2d, lambda: {"in_channels": 2, "out_channels": 2, "generators": se()}),
    "LConv2d()": (lambda **k: layer()(**k), lambda: {"input": X, "residual": None}),
    "LConvGraph": (lc.LConvGraph, lambda: {"in_channels": 2, "out_channels": 2, "generators": graph(), "bias": True,
                                           "device": None, "dtype": None}),
    "LConvGraph()": (lambda **k: lc.LConvGraph(2, 2, graph())(**k), lambda: {"input": torch.randn(1, 3, 2)}),
    "lconv": (lc.functional.lconv, lambda: {
        "input": X, "weight": torch.randn(4, 2, 2), "generators": se(), "bias": torch.zeros(2), "stride": 1,
        "groups": 1, "window": ((0, 0), SPATIAL), "halo": ((0, 0), (0, 0)), "residual": X, "activation": "relu"}),
    "AffineDifferentialGenerators": (lc.AffineDifferentialGenerators, lambda: {
        "matrix": torch.randn(2, 1, 2), "shift": torch.randn(2, 1), "orders": [[2, 0]], "accuracy": 2,
        "padding_mode": "zeros", "coordinate_scale": None, "learnable": False}),
    "AffineGenerators": (lc.AffineGenerators, lambda: {
        "matrix": torch.zeros(1, 2, 2), "shift": torch.ones(1, 2), "accuracy": 2, "padding_mode": "zeros",
        "coordinate_scale": None, "learnable": False}),
    "AffineGenerators.named": (lc.AffineGenerators.named, lambda: {"name": "se", "ndim": 2, "accuracy": 2}),
    "Generators()": (lambda **k: se()(**k), lambda: {"f": X}),
    "Generators.to_dense": (lambda **k: se().to_dense(**k), lambda: {"spatial_shape": SPATIAL}),
    "DenseGenerators": (lc.DenseGenerators, lambda: {"matrix": torch.randn(1, 4, 4), "learnable": False}),
    "LowRankGenerators": (lc.LowRankGenerators, lambda: {
        "left": torch.randn(1, 4, 2), "right": torch.randn(1, 2, 4), "learnable": False}),
    "FieldGenerators": (lc.FieldGenerators, lambda: {"field": torch.randn(1, 2, *SPATIAL), **SCHEME, "learnable": False}),
    "StencilGenerators": (lc.StencilGenerators, lambda: {
        "coefficients": torch.ones(1, 2), "taps": [[0, 1], [1, 0]], "padding_mode": "zeros", "learnable": False}),
    "DifferentialGenerators": (lc.DifferentialGenerators, lambda: {
        "coefficients": torch.ones(1, 2), "orders": [[0, 1], [1, 0]], **SCHEME, "learnable": False}),
    "ProductGenerators": (lc.ProductGenerators, lambda: {
        "generators": se(), "pairs": [(0, 1)], "symmetrised": True, "spatial": SPATIAL}),
    "GraphGenerators": (lc.GraphGenerators, lambda: {
        "edge_index": EDGES, "edge_weight": torch.ones(1, 4), "num_nodes": 3, "incidence": False, "learnable": False}),
    "GraphGenerators()": (lambda **k: graph()(**k), lambda: {"f": torch.randn(1, 3, 2)}),
    "GraphGenerators.from_adjacency": (lc.GraphGenerators.from_adjacency, lambda: {
        "edge_index": EDGES, "num_nodes": 3, "normalization": "gcn", "edge_weight": torch.ones(4), "self_loops": True,
        "learnable": False}),
    "GraphGenerators.from_grid": (lc.GraphGenerators.from_grid, lambda: {
        "generators": se(), "spatial": SPATIAL, "learnable": False}),
    "GraphGenerators.from_mesh": (lc.GraphGenerators.from_mesh, lambda: {
        "vertices": torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]), "faces": torch.tensor([[0, 1, 2], [1, 3, 2]]),
        "fields": None, "learnable": False}),
    "named": (lc.generators.named, lambda: {"name": "se", "ndim": 2, "accuracy": 2, "padding_mode": "zeros",
                                            "coordinate_scale": None, "learnable": False}),
    "normalise": (lc.generators.normalise, lambda: {"generators": se()}),
    "explain": (lc.explain, lambda: {"layer": layer(), "input_shape": (1, 2, *SPATIAL), "dtype": None, "card": None}),
    "invariants": (lc.invariants, lambda: {"f": X, "group": "se", "pairs": False, "padding_mode": "replicate"}),
    "DifferentialInvariants": (lc.DifferentialInvariants, lambda: {
        "channels": 2, "out_channels": 2, "group": "se", "padding_mode": "replicate"}),
    "DifferentialInvariants()": (lambda **k: lc.DifferentialInvariants(2)(**k), lambda: {"f": X}),
    "RecursiveLConv": (lc.RecursiveLConv, lambda: {
        "generators": se(), "steps": 2, "t": 0.0, "order": 1, "device": None, "dtype": None}),
    "RecursiveLConv()": (lambda **k: lc.RecursiveLConv(se(), 2)(**k), lambda: {"x": X, "t": torch.zeros(3)}),
    "flow": (lc.flow, lambda: {"x": X, "generators": se(), "t": torch.zeros(3), "steps": 1, "order": 1}),
    "DerivativeLConv": (lc.DerivativeLConv, lambda: {
        "in_channels": 2, "out_channels": 2, "generators": se(), "stride": 1, "groups": 1, "bias": True}),
    "DerivativeLConv()": (lambda **k: lc.DerivativeLConv(2, 2, se())(**k), lambda: {"input": X}),
    "MaxLConv": (lc.MaxLConv, lambda: {"generators": se()}),
    "MaxLConv()": (lambda **k: lc.MaxLConv(se())(**k), lambda: {"f": X}),
    "approximate": (lc.gconv.approximate, lambda: {
        "kernel": bell, "generators": lc.AffineGenerators.named("rotation"), "support": [(-0.2, 0.2)], "eta": 0.1,
        "steps": 1, "order": 1}),
    "integrate": (lc.gconv.integrate, lambda: {
        "kernel": bell, "f": X, "act": lambda f, t: f, "support": [(-0.2, 0.2)], "points": 2}),
    "GConv()": (lambda **k: lc.gconv.approximate(bell, lc.AffineGenerators.named("rotation"), [(-0.2, 0.2)], 0.1)(**k),
                lambda: {"f": X}),
    "regions": (lc.regions, lambda: {"model": layer(), "example_shape": (1, 2, *SPATIAL), "ndim": 2}),
    "regions().input_region": (lambda **k: plan().input_region(**k), lambda: {"output": ((0, 2), (0, 2))}),
    "regions().segments": (lambda **k: plan().segments(**k), lambda: {"output": ((0, 2), (0, 2))}),
    "window": (lc.window, lambda: {"model": layer(), "origin": (0, 0), "full": SPATIAL}),
    "stream": (lc.stream, lambda: {
        "model": layer(), "tile": (4, 4), "spill": None, "memory": None, "progress": False, "order": None}),
    "stream().forward_backward": (lambda **k: streamed().forward_backward(**k), lambda: {
        "volume": X[:1], "target": X[:1], "loss": lambda a, b: (a - b).square(), "reduction": "mean"}),
    "stream().predict": (lambda **k: streamed().predict(**k), lambda: {
        "volume": X[:1], "out": None, "transform": None, "resume": False}),
    "stream().result": (lambda **k: streamed().result(**k), lambda: {"volume": X[:1], "transform": None}),
    "stream().explain": (lambda **k: streamed().explain(**k), lambda: {"volume": X[:1]}),
    "sharding.explain": (lc.sharding.explain, lambda: {
        "model": layer(), "shape": (1, 2, *SPATIAL), "mesh": {"space": 2}, "dims": {2: "space"},
        "dtype": torch.float32, "device": cost.Device("card", 1e12, 1e12)}),
    "sharding.shard": (lc.sharding.shard, lambda: {"model": layer(), "mesh": mesh(), "dims": {2: "x"}, "check": True}),
    "sharding.local_part": (lc.sharding.local_part, lambda: {"volume": X, "mesh": mesh(), "dims": {2: "x"}, "like": None}),
    "sharding.full_tensor": (lc.sharding.full_tensor, lambda: {"part": X, "mesh": mesh(), "dims": {2: "x"}}),
    "adapters.sliding_window": (lc.adapters.sliding_window, lambda: {
        "inferer": Inferer(), "volume": X[:1], "model": layer(), "halo": (1, 1)}),
    "adapters.grid_window": (lc.adapters.grid_window, lambda: {
        "model": lc.LConv3d(1, 1), "batch": {"location": torch.tensor([[0, 0, 0, 4, 4, 4]])}, "sampler": Sampler()}),
    "convert.check": (lc.convert.check, lambda: {"model": swapped("se"), "batch": X, "repeats": 1}),
    "convert.from_conv": (lc.convert.from_conv, lambda: {"conv": nn.Conv2d(2, 2, 3, padding=1)}),
    "convert.to_conv": (lc.convert.to_conv, lambda: {"layer": lc.convert.from_conv(nn.Conv2d(2, 2, 3, padding=1))}),
    "convert.from_gcn": (lc.convert.from_gcn, lambda: {
        "conv": GCN(), "edge_index": EDGES, "num_nodes": 3, "edge_weight": torch.ones(4)}),
    "convert.lower": (lc.convert.lower, lambda: {"model": nn.Sequential(layer())}),
    "convert.project": (lc.convert.project, lambda: {
        "model": swapped("shifts"), "generators": "se", "strength": 0.5, "where": None,
        "accuracy": 2}),
    "convert.swap": (lc.convert.swap, lambda: {
        "model": nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)), "generators": "se", "where": None, "init": "fit",
        "accuracy": 2}),
    "nets.LUNet": (lc.nets.LUNet, lambda: {**NETWORK, "layers": 1, "pool": "max", "invariants": False}),
    "nets.LUNet()": (lambda **k: lc.nets.LUNet(2, 2, widths=(4, 8))(**k), lambda: {"input": X}),
    "nets.LResNet": (lc.nets.LResNet, lambda: {**NETWORK, "blocks": 1, "read_out": "mean"}),
    "nets.LResNet()": (lambda **k: lc.nets.LResNet(2, 2, widths=(4, 8))(**k), lambda: {"input": X}),
    "nets.LBlock": (lc.nets.LBlock, lambda: {
        "ndim": 2, "ins": 2, "outs": 2, "generators": se(), "norm": "group", "activation": "relu"}),
    "nets.ResidualBlock": (lc.nets.ResidualBlock, lambda: {
        "ndim": 2, "ins": 2, "outs": 2, "generators": se(), "norm": "group", "activation": "relu"}),
    "nets.SeparableLConv": (lc.nets.SeparableLConv, lambda: {
        "in_channels": 2, "out_channels": 2, "generators": se(), "bias": True}),
    "nets.SeparableLConv()": (lambda **k: lc.nets.SeparableLConv(2, 2, se())(**k), lambda: {"input": X}),
    "nets.EuclideanInvariants": (lc.nets.EuclideanInvariants, lambda: {"channels": 2, "ndim": 2}),
    "nets.EuclideanInvariants()": (lambda **k: lc.nets.EuclideanInvariants(2, 2)(**k), lambda: {"f": X}),
    "nets.equivariant": (lc.nets.equivariant, lambda: {"group": "scaling", "ndim": 2, "accuracy": 2}),
    "nets.isotropic": (lc.nets.isotropic, lambda: {"ndim": 2, "powers": 1, "padding_mode": "zeros"}),
    "nets.separable": (lc.nets.separable, lambda: {"model": nn.Sequential(layer())}),
    "nets.with_laplacian": (lc.nets.with_laplacian, lambda: {"generators": se()}),
    "discovery.discover": (lc.discovery.discover, lambda: {
        **pairs(), "kind": "affine", "parameters": torch.ones(12), "num_generators": None, "recursions": None,
        "degree": None, "edges": None, "route": "auto", "alpha": 0.01, "resolution": None, "device": None, "seed": 0,
        "progress": False, "ndim": 1}),
    "discovery.identify": (lc.discovery.identify, lambda: {"generators": se(), "spatial_shape": SPATIAL}),
    "discovery.alignment": (lc.discovery.alignment, lambda: {"learned": se(), "true": se(), "spatial_shape": SPATIAL}),
    "discovery.centralizer": (lc.discovery.centralizer, lambda: {
        "generators": lc.AffineGenerators.named("rotation"), "spatial_shape": SPATIAL, "tolerance": 0.01}),
    "discovery.closed": (lc.discovery.closed, lambda: {"generators": se(), "spatial_shape": SPATIAL, "dimension": 3}),
    "discovery.field_on": (lc.discovery.field_on, lambda: {
        "generators": lc.GraphGenerators(torch.tensor([[0, 1], [1, 2]]), torch.ones(1, 2), 9),
        "unscrambled": unscrambled()}),
    "discovery.unscramble": (lc.discovery.unscramble, lambda: {
        "images": torch.randn(20, 9, generator=torch.Generator().manual_seed(0)).cumsum(1), "shape": (3, 3)}),
    "discovery.Unscrambled.images": (lambda **k: unscrambled().images(**k), lambda: {"scrambled": torch.ones(2, 1, 9)}),
    "discovery.recursive_lconv": (lc.discovery.recursive_lconv, lambda: {
        "x": X, "t": torch.zeros(2, 3), "generators": se(), "recursions": 1, "order": 1}),
    "physics.QuadraticLagrangian": (lc.physics.QuadraticLagrangian, lambda: {
        "m2": torch.ones(2, 2), "h": torch.eye(2), "b": None, "components": None, **SCHEME}),
    "physics.QuadraticLagrangian.from_layer": (lc.physics.QuadraticLagrangian.from_layer, lambda: {"layer": layer()}),
    "physics.QuadraticLagrangian.density": (lambda **k: lagrangian().density(**k), lambda: {
        "phi": X, "form": "corrected"}),
    "physics.QuadraticLagrangian.correction": (lambda **k: lc.physics.QuadraticLagrangian.from_layer(layer()).correction(**k), lambda: {"phi": X}),
    "physics.QuadraticLagrangian.h": (lambda **k: lagrangian().h(**k), lambda: {"x": SPATIAL}),
    "physics.VariationalStep.run": (lambda **k: step().run(**k), lambda: {**WAVES, "steps": 1}),
    "physics.VariationalStep.trajectory": (lambda **k: step().trajectory(**k), lambda: {**WAVES, "steps": 1}),
    "physics.VariationalStep.energy": (lambda **k: step().energy(**k), lambda: WAVES),
    "physics.VariationalStep.charge": (lambda **k: step().charge(**k), lambda: {**WAVES, "internal": torch.zeros(2, 2)}),
    "physics.audit": (lc.physics.audit, lambda: {
        "model": layer(), "x": torch.randn(1, 2, 9, 9), "generators": "se", "margin": 1, "maps": True, "grids": None}),
    "physics.discover_by_noether": (lc.physics.discover_by_noether, lambda: {
        "lagrangian": lagrangian(), "phi": torch.randn(2, 2, 9, 9), "kind": "affine", "tolerance": None, "margin": 1, "accuracy": None,
        "padding_mode": None}),
    "physics.divergence": (lc.physics.divergence, lambda: {"current": X.unsqueeze(1), **SCHEME}),
    "physics.flux": (lc.physics.flux, lambda: {"current": X.unsqueeze(1), **SCHEME}),
    "physics.gradient": (lc.physics.gradient, lambda: {"phi": X, **SCHEME}),
    "physics.equivariance_error": (lc.physics.equivariance_error, lambda: {
        "module": layer(), "x": torch.randn(1, 2, 9, 9), "generators": "rotation", "t": 0.1}),
    "physics.euler_lagrange": (lc.physics.euler_lagrange, lambda: {
        "lagrangian": lagrangian(), "phi": X, "accuracy": None, "padding_mode": None}),
    "physics.exponential": (lc.physics.exponential, lambda: {
        "generators": lc.AffineGenerators.named("rotation"), "f": X, "t": torch.zeros(1)}),
    "physics.haar_measure": (lc.physics.haar_measure, lambda: {"generators": se(), "spatial": SPATIAL}),
    "physics.invariant_loss": (lc.physics.invariant_loss, lambda: {
        "layer": layer(), "phi": X, "measure": "flat", "generators": None}),
    "physics.noether_current": (lc.physics.noether_current, lambda: {
        "lagrangian": lagrangian(), "phi": X, "generators": se(), "internal": None, "accuracy": None,
        "padding_mode": None}),
    "physics.robustness": (lc.physics.robustness, lambda: {"model": layer(), "phi": X, "loss": None}),
    "physics.stress_energy": (lc.physics.stress_energy, lambda: {
        "lagrangian": lagrangian(), "phi": X, "symmetric": False, "spin": None, "signature": None, "accuracy": None,
        "padding_mode": None}),
    "physics.variational_step": (lc.physics.variational_step, lambda: {
        "lagrangian": lagrangian(), "axis": 0, "accuracy": None, "padding_mode": None, "tolerance": 1e-12}),
}  # fmt: skip


class Inferer:
    """Stands for MONAI's, on one window."""

    with_coord = True

    def __call__(self, volume: torch.Tensor, predict: Callable[..., Any]) -> Any:
        return predict(volume, [[slice(0, 1), slice(0, 2), *(slice(0, size) for size in SPATIAL)]])


class Sampler:
    """Stands for TorchIO's."""

    class subject:
        spatial_shape = (4, 4, 4)


class GCN(nn.Module):
    """Stands for PyTorch Geometric's GCNConv."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.bias = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(2))
        self.in_channels = self.out_channels = 2
        self.normalize, self.add_self_loops, self.improved, self.flow, self.cached = (
            True,
            True,
            False,
            "source_to_target",
            False,
        )


# ---- what is put in their place ----

WRONG: dict[str, Any] = {
    "None": None, "'x'": "x", "''": "", "b'x'": b"x", "-1": -1, "0": 0, "-2**63": -(2**63), "2**63": 2**63, "1.5": 1.5,
    "1e200": 1e200, "nan": math.nan, "inf": math.inf, "1j": 1j, "True": True, "[]": [], "()": (), "[[]]": [[]],
    "[None]": [None], "['x', 'y']": ["x", "y"], "[1.5, 2]": [1.5, 2], "[2**63] * 2": [2**63] * 2, "{}": {},
    "{1: 2}": {1: 2}, "object()": object(), "a function": lambda *_, **__: None, "int": int, "a dtype": torch.int64,
    "a number": torch.tensor(2.5), "no numbers": torch.empty(0), "integers": torch.ones(2, 3, dtype=torch.int64),
    "a matrix": torch.ones(2, 2), "NaNs": torch.full((2, 2, 6, 5), math.nan), "complex": torch.ones(2, 2, 6, 5) * 1j,
    "on meta": torch.ones(2, 2, 6, 5, device="meta"), "an array": np.ones((2, 2)), "a module": nn.Identity(),
    "a graph": graph(), "dense": lc.DenseGenerators(torch.randn(1, 4, 4)), "bool": torch.ones(2, 2).bool(),
    "four axes": torch.ones(1, 2, 3, 1, 2, 2), "sparse": torch.ones(2, 2, 6, 5).to_sparse(),
}  # fmt: skip
