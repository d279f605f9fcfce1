"""The table of operators: name -> rule. What is missing here is not local, or not known to be."""

from __future__ import annotations

import torch
from torch import fx

from lconv_fast.regions.rules import points
from lconv_fast.regions.rules.base import Kind, NotLocal, Rule, Tile, Value, operator_name
from lconv_fast.regions.rules.lconv import LConv
from lconv_fast.regions.rules.norms import Mean, Norm
from lconv_fast.regions.rules.resize import RESIZES
from lconv_fast.regions.rules.shapes import SHAPES
from lconv_fast.regions.rules.windows import WINDOWS

__all__ = ["REDUCTIONS", "RULES", "Kind", "NotLocal", "Rule", "Tile", "Value", "operator_name", "rule_for"]

POINTWISE = [
    "clone",
    "contiguous",
    "alias",
    "detach",
    "to",
    "_to_copy",
    "type_as",
    "lift_fresh",
    "lift_fresh_copy",
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "_prelu_kernel",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "softsign",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "log_sigmoid",
    "tanhshrink",
    "softshrink",
    "hardshrink",
    "threshold",
    "rrelu",
    "where",
    "clamp",
    "masked_fill",
    "square",
    "zeros_like",
    "ones_like",
    "full_like",
    "rsub",
    "div",
    "true_divide",
    "floor_divide",
    "multiply",
    "subtract",
    "divide",
    "sub",
    "mul",
    "add",
    "pow",
    "float_power",
    "addcmul",
    "addcdiv",
    "lerp",
    "positive",
    "absolute",
    "negative",
    "clip",
    "isnan",
    "isinf",
    "isfinite",
    "nan_to_num",
]
# Operators along the dimensions of an argument: softmax and sums over channels.
ALONG = {
    **{
        f"aten.{name}": points.Along()
        for name in ("softmax", "log_softmax", "_softmax", "_log_softmax", "amax", "amin")
    },
    **{
        f"aten.{name}": points.Along() for name in ("argmax", "argmin", "logsumexp", "prod", "std", "var", "any", "all")
    },
    **{f"aten.{name}": points.Along() for name in ("linalg_vector_norm", "norm", "cumsum", "glu", "flip", "sort")},
    "aten.max": points.Along(),
    "aten.min": points.Along(),
    "aten.channel_shuffle": points.Along("none", default=1),
    "aten.native_channel_shuffle": points.Along("none", default=1),
    "aten.index_select": points.Along(keepdim=True),
}
RULES: dict[str, Rule] = {
    **{f"aten.{name}": points.Pointwise() for name in POINTWISE},
    **ALONG,
    **WINDOWS,
    **RESIZES,
    **SHAPES,
    "lconv_fast.apply": LConv(),
    "aten.cat": points.Cat(),
    "aten.split": points.Split(),
    "aten.split_with_sizes": points.Split(),
    "aten.chunk": points.Split(),
    "aten.tensor_split": points.Split(),
    "aten.unbind": points.Split(),
    "getitem": points.Item(),
    "aten.linear": points.LastDims(),
    "aten.layer_norm": points.LastDims(),
    "aten.rms_norm": points.LastDims(),
    "aten.dropout": points.Dropout(),
    "aten.feature_dropout": points.Dropout(feature=True),
    "aten.instance_norm": Norm("instance"),
    "aten.group_norm": Norm("group"),
    "aten.batch_norm": Norm("batch"),
}
# Tried first: where they reduce over space the rest of the table does not hold.
REDUCTIONS: dict[str, Rule] = {
    "aten.instance_norm": RULES["aten.instance_norm"],
    "aten.group_norm": RULES["aten.group_norm"],
    "aten.batch_norm": RULES["aten.batch_norm"],
    "aten.mean": Mean(),
    "aten.sum": Mean(mean=False),
    **{f"aten.adaptive_avg_pool{n}d": Mean(adaptive=True) for n in (1, 2, 3)},
}
RULES |= {"aten.mean": points.Along(), "aten.sum": points.Along()}


def rule_for(node: fx.Node) -> Rule | None:
    """Of an operator on fields; None where there is none. In-place operators act as those that return a copy."""
    name = operator_name(node)
    if name in RULES:
        return RULES[name]
    if name.endswith("_") and name[:-1] in RULES:
        return RULES[name[:-1]]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return RULES["aten.clone"]
    return None
