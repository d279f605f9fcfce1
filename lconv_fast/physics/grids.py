"""Follows the grids that a model makes: where the points of every intermediate grid lie on the model's input.

Watches the functions of PyTorch that a model calls, as methods of modules or on their own, and reads strides, paddings
and sizes from their arguments; one rule a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from lconv_fast.generators import Generators
from lconv_fast.modules import LConv1d, LConv2d, LConv3d
from lconv_fast.physics.group import Placement

Shape = tuple[int, ...]
Numbers = tuple[float, ...]
# (arguments by name, input's spatial shape, output's) -> (scale, offset): input index = scale * output index + offset
Rule = Callable[[dict[str, Any], Shape, Shape], tuple[Numbers, Numbers]]


def _each(value: Any, ndim: int) -> tuple[Any, ...]:
    if isinstance(value, Sequence):
        return tuple(value) if len(value) == ndim else (value[0],) * ndim
    return (value,) * ndim


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any, ndim: int) -> tuple[Numbers, Numbers]:
    """Output j looks at inputs around stride * j + dilation * (kernel - 1) / 2 - padding."""
    rows = [_each(v, ndim) for v in (kernel, stride, dilation)]
    if padding == "same":
        paddings = tuple(d * (k - 1) // 2 for k, _, d in zip(*rows, strict=True))
    else:
        paddings = _each(0 if padding == "valid" else padding, ndim)
    kernels, strides, dilations = rows
    offset = tuple(d * (k - 1) / 2 - p for k, d, p in zip(kernels, dilations, paddings, strict=True))
    return tuple(float(s) for s in strides), offset


def _conv(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    return _window(
        tuple(a["weight"].shape[2:]), a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1), len(before)
    )


def _conv_transpose(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    scale, offset = _conv(a, before, after)
    return tuple(1 / s for s in scale), tuple(-o / s for o, s in zip(offset, scale, strict=True))


def _pool(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    kernel, stride = a["kernel_size"], a.get("stride")
    stride = kernel if stride is None or stride == [] else stride
    return _window(kernel, stride, a.get("padding", 0), a.get("dilation", 1), len(before))


def _centred(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    """Both grids cover the same box."""
    scale = tuple(b / c for b, c in zip(before, after, strict=True))
    return scale, tuple((s - 1) / 2 for s in scale)


def _interpolate(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    if a.get("align_corners"):
        return tuple((b - 1) / max(c - 1, 1) for b, c in zip(before, after, strict=True)), (0.0,) * len(before)
    scale, offset = _centred(a, before, after)
    if a.get("mode", "nearest") == "nearest":  # takes the point floor(scale * j)
        offset = tuple(o if s < 1 else 0.0 for s, o in zip(scale, offset, strict=True))
    return scale, offset


def _pad(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    low = list(a["pad"][::2])  # of the last axis first
    return (1.0,) * len(before), tuple(-float(p) for p in reversed(low + [0] * (len(before) - len(low))))


def _getitem(a: dict[str, Any], before: Shape, after: Shape) -> tuple[Numbers, Numbers]:
    index = a["index"] if isinstance(a["index"], tuple) else (a["index"],)
    total = len(before) + 2
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (total - len(index) + 1), *index[at + 1 :])
    index = (*index, *[slice(None)] * (total - len(index)))
    if len(index) != total or not all(isinstance(i, slice) for i in index[2:]):
        raise KeyError("an index that is no slice")
    ranges = [i.indices(size) for i, size in zip(index[2:], before, strict=True)]
    return tuple(float(r[2]) for r in ranges), tuple(float(r[0]) for r in ranges)


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVG = ("input", "kernel_size", "stride", "padding", "ceil_mode")

RULES: dict[str, tuple[tuple[str, ...], Rule]] = {
    **{f"conv{n}d": (_CONV, _conv) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (_TRANSPOSE, _conv_transpose) for n in (1, 2, 3)},
    **{f"{p}max_pool{n}d": (_MAX, _pool) for n in (1, 2, 3) for p in ("", "_")},
    **{f"max_pool{n}d_with_indices": (_MAX, _pool) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": (_AVG, _pool) for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": (("input", "output_size"), _centred) for kind in ("avg", "max") for n in (1, 2, 3)},
    "interpolate": (
        ("input", "size", "scale_factor", "mode", "align_corners"),
        _interpolate,
    ),
    "pixel_shuffle": (("input", "upscale_factor"), _centred),
    "pixel_unshuffle": (("input", "downscale_factor"), _centred),
    "pad": (("input", "pad", "mode", "value"), _pad),
    "__getitem__": (("input", "index"), _getitem),
}
FLATTEN = ("flatten", "view", "reshape", "squeeze", "unflatten")


class Follower(TorchFunctionMode):
    """Keeps a Placement for every grid that appears; the latest for grids of one shape."""

    def __init__(self, root: Shape) -> None:
        super().__init__()
        self.root, self.ndim = root, len(root)
        self.known: dict[Shape, Placement] = {root: Placement.identity(len(root))}
        self.acting: dict[tuple[Shape, Placement], Generators] = {}  # the group's generators on grids that were seen
        self.lost: dict[Shape, str] = {}  # grids that cannot be followed, and the function that made them
        self.flattened: dict[int, tuple[Shape, str]] = {}  # lengths of vectors that are grids in disguise

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        data = args[0] if args else (kwargs or {}).get("input")
        out = result[0] if isinstance(result, tuple) and result else result
        if isinstance(data, Tensor) and isinstance(out, Tensor) and data.dim() == self.ndim + 2:
            self._saw(getattr(func, "__name__", str(func)), data, out, args, kwargs or {})
        return result

    def _saw(self, name: str, data: Tensor, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before, after = tuple(data.shape[2:]), tuple(out.shape[2:])
        if out.dim() == 2 and name in FLATTEN and data[0, 0].numel() > 1:
            self.flattened[out.shape[1]] = (before, name)
        if out.dim() != data.dim() or 0 in after:
            return
        if name in RULES:
            names, rule = RULES[name]
            try:
                self.place(after, before, *rule({**dict(zip(names, args, strict=False)), **kwargs}, before, after))
            except KeyError:
                self.lost[after] = name
        elif after != before and after not in self.known and name not in ("__get__", "__set__"):
            self.lost[after] = name

    def place(self, after: Shape, before: Shape, scale: Numbers, offset: Numbers) -> None:
        """The grid `after` lies on `before` with that scale and offset."""
        if before not in self.known:
            self.lost[after] = self.lost.get(before, "an unknown function")
        else:
            self.known[after] = self.known[before].then(scale, offset)
            self.lost.pop(after, None)

    def saw_module(self, module: object, before: Shape, after: Shape) -> None:
        """Strided L-convs call no function of PyTorch: they take every stride-th point, from the first on."""
        if isinstance(module, LConv1d | LConv2d | LConv3d) and set(module.stride) != {1}:
            self.place(after, before, tuple(map(float, module.stride)), (0.0,) * self.ndim)
