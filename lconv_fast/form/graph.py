"""The layer on a graph, as a partial of Q."""

from __future__ import annotations

from torch import Tensor

from lconv_fast.form.calculus import F, G, partial
from lconv_fast.ops.graph import Graph


def graph_lconv(
    coefficients: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, graph: Graph, transposed: bool
) -> Tensor:
    """y = f W0^T + sum_i (L_i f) Wi^T + bias on nodes, or with L_i^T: eq. (10) and (17) of Dehmamy et al. 2021.

    coefficients (n_L, E), the weights of the edges; input (N, nodes, C_in), weight (n_L + 1, C_out, C_in / groups);
    returns (N, nodes, C_out). Arguments have been checked.
    """
    f = input.transpose(1, 2)
    if not transposed:
        return partial(G, (coefficients, f, weight, None), graph, True, bias).transpose(1, 2)
    # As on grids (layer.py): dQ/df with f in the place of g.
    rows, outs, ins = weight.shape
    swapped = weight.reshape(rows, graph.groups, outs // graph.groups, ins).transpose(2, 3)
    swapped = swapped.reshape(rows, graph.groups * ins, outs // graph.groups)
    output = partial(F, (coefficients, None, swapped, f), graph).transpose(1, 2)
    return output if bias is None else output + bias
