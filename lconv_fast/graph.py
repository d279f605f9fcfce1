"""Generators on the edges of a graph or mesh, and the layer on them. In plain PyTorch: gathers and ordered sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_float, check_generators, check_types, positive_int
from lconv_fast.generators import Generators
from lconv_fast.initialization import keep_variance


class GraphGenerators(Generators):
    """(L_i f)[mu] = sum over edges e = (nu, mu) of w[i, e] f[nu]; with L = D^-1/2 A D^-1/2, the layer is a GCN.

    Args:
        edge_index: (2, E) integers, row 0 the source nu and row 1 the target mu, as in PyTorch Geometric.
        edge_weight: (E,) or (n_L, E).
        num_nodes: of the graph.
        learnable: makes edge_weight a parameter.

    Called with f (N, nodes, C), it gives L_i f as (N, n_L, nodes, C).
    """

    edge_index: Tensor
    edge_weight: Tensor

    def __init__(self, edge_index: Tensor, edge_weight: Tensor, num_nodes: int, *, learnable: bool = False) -> None:
        super().__init__()
        self.num_nodes = positive_int("num_nodes", num_nodes)
        if not isinstance(edge_index, Tensor) or edge_index.dtype not in (torch.int32, torch.int64):
            found = edge_index.dtype if isinstance(edge_index, Tensor) else type(edge_index).__name__
            raise TypeError(f"edge_index: expected a tensor of integers (2, E), got {found}")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index: expected shape (2, E), got {tuple(edge_index.shape)}")
        if isinstance(edge_weight, Tensor) and edge_weight.dim() == 1:
            edge_weight = edge_weight.unsqueeze(0)
        check_generators("edge_weight", edge_weight, (2,), "(E,) or (n_L, E)")
        if edge_weight.shape[1] != edge_index.shape[1]:
            raise ValueError(f"edge_weight: expected {edge_index.shape[1]} edges, got {edge_weight.shape[1]}")
        if edge_index.numel() and not edge_index.is_meta:
            least, most = int(edge_index.min()), int(edge_index.max())
            if least < 0 or most >= num_nodes:
                raise ValueError(f"edge_index: expected nodes 0 to {num_nodes - 1}, got {least} to {most}")
        self.num_generators = edge_weight.shape[0]
        self.register_buffer("edge_index", edge_index.detach().long().clone())
        self._keep("edge_weight", edge_weight, learnable)

    def coefficients(self) -> Tensor:
        return self.edge_weight

    def check_nodes(self, f: Tensor) -> None:
        check_float("f", f, (3,), "(N, nodes, C)")
        if f.shape[1] != self.num_nodes:
            raise ValueError(f"f: expected {self.num_nodes} nodes as the generators have, got {tuple(f.shape)}")

    def forward(self, f: Tensor) -> Tensor:
        self.check_nodes(f)
        check_types(f, generators=self.edge_weight)
        return torch.stack([self.apply_one(i, f) for i in range(self.num_generators)], 1)

    def apply_one(self, i: int, f: Tensor) -> Tensor:
        """L_i f: (N, nodes, C) -> (N, nodes, C)."""
        source, target = self.edge_index.flip(0) if self.transposed else self.edge_index
        sent = f[:, source] * self.edge_weight[i].to(f.dtype).unsqueeze(1)
        return torch.zeros_like(f).index_add(1, target, sent)

    def to_dense(self, spatial_shape: tuple[int, ...]) -> Tensor:
        if torch.Size(spatial_shape).numel() != self.num_nodes:
            raise ValueError(f"spatial_shape: expected {self.num_nodes} nodes, got {tuple(spatial_shape)}")
        one = torch.eye(self.num_nodes, dtype=self.edge_weight.dtype, device=self.edge_weight.device)
        return self.forward(one.unsqueeze(0))[0]

    def mean_square(self) -> Tensor:
        with torch.no_grad():
            return self.edge_weight.double().square().sum(1) / self.num_nodes

    def extra_repr(self) -> str:
        text = f"num_generators={self.num_generators}, nodes={self.num_nodes}, edges={self.edge_index.shape[1]}"
        return text + (", transposed=True" if self.transposed else "")


class LConvGraph(nn.Module):
    """y = f W0^T + sum_i (L_i f) Wi^T + bias on the nodes of a graph: eq. (10) of Dehmamy et al. 2021.

    Input (N, nodes, C_in) or (nodes, C_in); output the same with C_out. Each L_i runs on the fewer channels, before or
    after the mixing. Derivatives of any order are PyTorch's own.

    Args:
        in_channels, out_channels: numbers of channels.
        generators: GraphGenerators.
        bias: adds a learnable bias, 0 at first.
        device, dtype: of the parameters and of the generators, which are moved where given.

    Attributes:
        weight: (n_L + 1, out_channels, in_channels), weight[0] = W^0; starts as in LConv2d. bias: (out_channels,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        generators: GraphGenerators,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        if not isinstance(generators, GraphGenerators):
            raise TypeError(f"generators: expected GraphGenerators, got {type(generators).__name__}")
        self.generators = generators.to(device=device, dtype=dtype)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(generators.num_generators + 1, out_channels, in_channels, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Keeps the variance of white noise, as LConv2d does."""
        keep_variance(self.weight, self.generators, self.in_channels)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        check_float("input", input, (2, 3), "(N, nodes, C) or (nodes, C)")
        f = input if input.dim() == 3 else input.unsqueeze(0)
        if f.shape[2] != self.in_channels:
            raise ValueError(f"input: expected {self.in_channels} channels, got shape {tuple(input.shape)}")
        self.generators.check_nodes(f)
        check_types(f, weight=self.weight, bias=self.bias, generators=self.generators.edge_weight)
        y = nn.functional.linear(f, self.weight[0], self.bias)
        for i, weight in enumerate(self.weight[1:]):
            if self.out_channels < self.in_channels:
                y = y + self.generators.apply_one(i, nn.functional.linear(f, weight))
            else:
                y = y + nn.functional.linear(self.generators.apply_one(i, f), weight)
        return y if input.dim() == 3 else y.squeeze(0)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}" + (", bias=False" if self.bias is None else "")
