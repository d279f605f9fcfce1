"""The layer on a graph beside torch.sparse and PyTorch Geometric's GCNConv: python -m bench.graphs [--threads N].

A random graph of 100,000 nodes, 8 edges a node, 64 channels. Results are compared with float64 first; then the runs of
all take turns, and times are medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lconv_fast as lc

Layer = Callable[[Tensor], Tensor]


class SparseLayer(nn.Module):
    """y = f W0^T + sum_i (L_i f) Wi^T + b by CSR matrices and, for gradients, their transposes, all made beforehand."""

    def __init__(self, layer: lc.LConvGraph) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        generators = layer.generators
        size = (generators.num_nodes,) * 2
        source, target = generators.edge_index

        def csr(index: Tensor, values: Tensor) -> Tensor:
            return torch.sparse_coo_tensor(index, values, size).coalesce().to_sparse_csr()

        forward, transposed = torch.stack([target, source]), torch.stack([source, target])
        self.pairs = [(csr(forward, w), csr(transposed, w)) for w in generators.edge_weight.detach()]

    def forward(self, f: Tensor) -> Tensor:
        y = torch.addmm(self.bias, f, self.weight[0].t())
        for pair, w in zip(self.pairs, self.weight[1:], strict=True):
            y = y.addmm(_Product.apply(f, *pair), w.t())
        return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ f

    @staticmethod
    def backward(ctx, g: Tensor):
        return ctx.transposed @ g, None, None


def contenders(count: int, nodes: int, degree: int, channels: int) -> dict[str, tuple[nn.Module, Layer]]:
    index = torch.randint(nodes, (2, nodes * degree))
    if count == 1 and importlib.util.find_spec("torch_geometric"):
        from torch_geometric.nn import GCNConv

        conv = GCNConv(channels, channels, cached=True)  # normalized once, as in our layer
        layer = lc.convert.from_gcn(conv, index, nodes)
        return {
            "lconv_fast": (layer, layer),
            "torch.sparse": ((sparse := SparseLayer(layer)), sparse),
            "GCNConv": (conv, lambda f: conv(f, index)),
        }
    layer = lc.LConvGraph(channels, channels, lc.GraphGenerators(index, torch.randn(count, index.shape[1]), nodes))
    return {"lconv_fast": (layer, layer), "torch.sparse": ((sparse := SparseLayer(layer)), sparse)}


def verified(runs: dict[str, tuple[nn.Module, Layer]], f: Tensor) -> None:
    layer = runs["lconv_fast"][0]
    exact = f.double() @ layer.weight[0].double().t() + layer.bias.double()
    source, target = layer.generators.edge_index
    for values, w in zip(layer.generators.edge_weight.double(), layer.weight[1:].double(), strict=True):
        moved = torch.zeros_like(f, dtype=torch.float64).index_add(0, target, f.double()[source] * values[:, None])
        exact = exact + moved @ w.t()
    for name, (_, run) in runs.items():
        error = ((run(f).double() - exact).norm() / exact.norm()).item()
        assert error < 1e-6, f"{name}: error {error:.1e}"


def measured(runs: dict[str, tuple[nn.Module, Layer]], f: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Medians in milliseconds: forward, and forward with the gradients of input and parameters."""
    g = torch.randn(f.shape[0], f.shape[1])
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "step": []} for name in runs}
    for _ in range(rounds):
        for name, (module, run) in runs.items():
            with torch.no_grad():
                start = time.perf_counter()
                run(f)
                times[name]["forward"].append(time.perf_counter() - start)
            x, parameters = f.detach().requires_grad_(), list(module.parameters())
            start = time.perf_counter()
            torch.autograd.grad(run(x), [x, *parameters], g)
            times[name]["step"].append(time.perf_counter() - start)
    return {n: {k: 1e3 * statistics.median(v[1:]) for k, v in found.items()} for n, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--degree", type=int, default=8)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--generators", type=int, nargs="*", default=[1, 3])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse")  # that CSR is in beta
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for count in arguments.generators:
        runs = contenders(count, arguments.nodes, arguments.degree, arguments.channels)
        f = torch.randn(arguments.nodes, arguments.channels)
        verified(runs, f)
        found = measured(runs, f, arguments.rounds)
        print(f"n_L = {count}, {arguments.threads} threads: milliseconds, and times lconv_fast's")
        for name, row in found.items():
            cells = [f"{k} {ms:7.1f} ({ms / found['lconv_fast'][k]:4.1f})" for k, ms in row.items()]
            print(f"  {name:14}" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
