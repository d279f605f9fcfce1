"""What sharded tensors may be given to: a rule for each torch function, by name. A function that is not listed is
refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lconv_fast.sharding.rules import pointwise, sums, views, windows

_POINTWISE = """
    abs add addcdiv addcmul alpha_dropout bfloat16 celu clamp clamp_max clamp_min clip clone contiguous copy_ cos
    cosh cpu cuda detach div divide double dropout elu empty_like eq erf exp expm1 fill_ float floor floor_divide
    full_like ge gelu gt half hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp log
    log1p log2 log10 logical_and logical_not logical_or logical_xor logit logsigmoid lt masked_fill maximum minimum
    mish mul multiply nan_to_num ne neg negative ones_like pow reciprocal relu relu6 remainder requires_grad_
    retain_grad round rrelu rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink softsign sqrt square sub
    subtract tan tanh tanhshrink threshold to true_divide type type_as where zero_ zeros_like __add__ __radd__
    __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ __pow__
    __rpow__ __neg__ __abs__ __gt__ __lt__ __ge__ __le__ __eq__ __ne__ __and__ __or__ __invert__
""".split()  # noqa: SIM905
_IN_PLACE = [f"{name}_" for name in _POINTWISE if not name.startswith("__") and not name.endswith("_")]
_ALONG = """
    softmax log_softmax softmin amax amin max min argmax argmin var std var_mean std_mean logsumexp norm normalize
    cumsum cumprod prod median sort topk glu all any flip roll
""".split()  # noqa: SIM905

RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys([*_POINTWISE, *_IN_PLACE], pointwise.elementwise),
    **dict.fromkeys(_ALONG, sums.along),
    **dict.fromkeys(["new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"], pointwise.unrelated),
    "prelu": pointwise.channelwise,
    "linear": pointwise.linear,
    **dict.fromkeys(["cat", "concat", "concatenate", "stack"], pointwise.joined),
    **dict.fromkeys(["permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"], views.permuted),
    **dict.fromkeys(
        [
            "view",
            "reshape",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "expand",
            "expand_as",
            "view_as",
            "reshape_as",
        ],
        views.reshaped,
    ),
    "__getitem__": views.indexed,
    "narrow": views.narrowed,
    **dict.fromkeys(["chunk", "split", "unbind"], views.pieces),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], views.shuffled),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], windows.convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], windows.transposed),
    **dict.fromkeys([f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)], windows.pooling),
    "pad": windows.padded,
    "interpolate": windows.interpolated,
    **dict.fromkeys(["mean", "sum"], sums.reduced),
    **dict.fromkeys([f"adaptive_avg_pool{n}d" for n in (1, 2, 3)], sums.pooled_to_one),
    **dict.fromkeys(sums.NORMS, sums.norm),
    "layer_norm": sums.layer_norm,
    **dict.fromkeys(["dropout1d", "dropout2d", "dropout3d"], sums.feature_dropout),
}

REFUSALS: dict[str, str] = {
    "scaled_dot_product_attention": "is attention, which sees all points",
    "multi_head_attention_forward": "is attention, which sees all points",
    "matmul": "is a product of matrices, which may sum over points; take a linear layer or a convolution for "
    "mixing channels",
    "__matmul__": "is a product of matrices, which may sum over points; take a linear layer or a convolution for "
    "mixing channels",
    "einsum": "may sum over points; take a linear layer or a convolution for mixing channels",
    **dict.fromkeys(
        ["mse_loss", "l1_loss", "cross_entropy", "nll_loss"],
        "is a mean over points: compute the loss outside the sharded model",
    ),
}
