"""What `discover` is asked: arguments that have been checked, and images whose unit no longer matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from lconv_fast.checks import check_float, is_integer, positive_int
from lconv_fast.discovery.fields import Array
from lconv_fast.generators.graph import check_edges

SHORTEST = 5  # points on an axis
EXPLAINED = 0.5  # of y's variance: what a transformation must explain of a pair for it to count as one
MOST_PIXELS = 1e6  # of `resolution`: no image is as wide
LABELS = 1e-30, 1e30  # sizes of a label: generators per unit of it must fit into float32


@dataclass(frozen=True)
class Problem:
    """Pairs y_p = exp(sum_i t[p,i] L_i) x_p, and how to look for L_i; the arguments of `discover`."""

    x: Tensor  # (P, C, *spatial), float64 on the CPU, in a unit that makes the largest value about 1
    y: Tensor
    t: Array | None  # (P, n_L)
    kind: str
    num_generators: int | None
    recursions: int | None
    degree: int | None
    edges: Tensor | None
    alpha: float
    resolution: float | None
    device: torch.device
    report: Callable[[str, float], None]  # what is being done, and the fraction that is done

    @property
    def pairs(self) -> int:
        return len(self.x)

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(self.x.shape[2:])

    @property
    def ndim(self) -> int:
        return len(self.spatial)

    @property
    def images(self) -> Array:
        return self.x.numpy()

    @property
    def targets(self) -> Array:
        return self.y.numpy()


def described(shape: torch.Size | tuple[int, ...], kind: str) -> str:
    """The shape (P, C, *spatial) in words."""
    pairs, channels, *spatial = shape
    words = [f"{pairs} pair{'s' * (pairs != 1)}", f"{channels} channel{'s' * (channels != 1)}"]
    if kind == "graph":
        return ", ".join([*words, f"{spatial[0]} nodes"])
    axes = f"{len(spatial)} {'axis' if len(spatial) == 1 else 'axes'}"
    return ", ".join([*words, f"{axes} of {' x '.join(map(str, spatial))} points"])


def check_pairs(x: object, y: object, kind: str, ndim: int | None) -> None:
    """x and y are pairs (P, C, *spatial) of images that vary, and it is clear which axis is which."""
    if ndim is not None and positive_int("ndim", ndim) > 3:
        raise ValueError(f"ndim: expected 1, 2 or 3 spatial axes, got {ndim!r}")
    for name, value in (("x", x), ("y", y)):
        check_float(name, value, (3, 4, 5), "(P, C, *spatial) with 1 to 3 spatial axes")
        assert isinstance(value, Tensor)
        if value.is_meta:
            raise TypeError(f"{name}: expected a tensor with numbers, got one on the meta device")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    assert isinstance(x, Tensor) and isinstance(y, Tensor)
    if x.shape != y.shape:
        raise ValueError(f"y: expected the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.shape[0] == 0 or x.shape[1] == 0 or min(x.shape[2:]) < SHORTEST:
        raise ValueError(
            f"x: expected a pair or more, of at least {SHORTEST} points on each axis, got {tuple(x.shape)}"
        )
    spatial = x.dim() - 2
    if ndim is not None and ndim != spatial:
        given = (x.shape[0], 1, *x.shape[1:])
        add = f"; x[:, None] adds the channel axis, {given}" if ndim == spatial + 1 else ""
        raise ValueError(
            f"ndim: {tuple(x.shape)} is (P, C, *spatial) with {spatial} spatial axes, got ndim={ndim}{add}"
        )
    if ndim is None and kind != "graph" and spatial < 3 and x.shape[1] >= SHORTEST:
        one, pictures = (x.shape[0], 1, *x.shape[1:]), " x ".join(map(str, x.shape[1:]))
        raise ValueError(
            f"x: {tuple(x.shape)} is ambiguous: {described(x.shape, kind)}, or {x.shape[0]} images of {pictures} "
            f"points without a channel axis. For the first pass ndim={spatial}; for the second add the axis, "
            f"x[:, None] and y[:, None], which makes {one}"
        )


def check_choices(
    num_generators: object,
    recursions: object,
    degree: object,
    alpha: object,
    resolution: object,
    seed: object,
    edges: object,
    pairs: int,
) -> None:
    """Numbers are of the right type and within their bounds."""
    if edges is not None:
        check_edges(edges, None, "edges")
    if num_generators is not None and positive_int("num_generators", num_generators) > pairs:
        raise ValueError(f"num_generators: expected 1 to {pairs}, the number of pairs, got {num_generators!r}")
    if recursions is not None:
        positive_int("recursions", recursions)
    for name, value in (("degree", degree), ("seed", seed)):
        if value is not None and not is_integer(value):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha: expected a probability between 0 and 1, got {alpha!r}")
    if not 0 < float(alpha) < 1:
        raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha!r}")
    if resolution is None:
        return
    if isinstance(resolution, bool) or not isinstance(resolution, Real):
        raise TypeError(f"resolution: expected a positive number of pixels, got {resolution!r}")
    if not 0 < float(resolution) <= MOST_PIXELS:
        raise ValueError(
            f"resolution: expected a positive number of pixels, got {resolution!r} (of at most {MOST_PIXELS:g})"
        )


def checked_device(device: object, x: Tensor) -> torch.device:
    """`device`, by default x's, if tensors can be made there."""
    if device is None:
        return x.device
    try:
        probe = torch.ones((), device=device)  # type: ignore[call-overload]
        probe.item()  # which the meta device has none of
        return probe.device
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device: expected one that PyTorch can use, got {device!r} ({reason})") from None


def checked_labels(parameters: object, pairs: int, num_generators: int | None) -> Array:
    """t (P, n_L), float64, from what numpy or torch take for real numbers."""
    expected = f"({pairs},) or ({pairs}, n_L)"
    try:
        given = parameters.detach().cpu() if isinstance(parameters, Tensor) else torch.as_tensor(parameters)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"parameters: expected real numbers {expected}, got {parameters!r}") from None
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"parameters: expected real numbers {expected}, got {given.dtype}")
    if given.dim() not in (1, 2) or len(given) != pairs or 0 in given.shape:
        raise ValueError(f"parameters: expected shape {expected}, got {tuple(given.shape)}")
    t: Array = given.double().numpy().reshape(pairs, -1)
    count = t.shape[1]
    if num_generators is not None and num_generators != count:
        raise ValueError(f"num_generators: expected {count} as parameters has, got {num_generators!r}")
    if not np.isfinite(t).all():
        raise ValueError("parameters: expected finite values, got NaN or infinity")
    if not t.any():
        raise ValueError("parameters: all are zero, so that nothing about the generators can be identified")
    if pairs < count:
        raise ValueError(f"x: {pairs} pairs cannot identify {count} generators")
    size = np.abs(t).max(0)
    rank = np.linalg.matrix_rank(t / np.where(size > 0, size, 1.0))
    if rank < count:
        raise ValueError(f"parameters: columns are dependent: rank {rank} of {count} generators")
    if size.min() < LABELS[0] or size.max() > LABELS[1]:
        raise ValueError(
            f"parameters: expected sizes between {LABELS[0]:g} and {LABELS[1]:g}, so that generators per unit fit into "
            f"float32, got {size.min():.3g} to {size.max():.3g}"
        )
    return t


def in_own_unit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU, times the power of 2 that brings the largest value below 1: what is found does not
    depend on the unit of the images, to the last bit for units that differ by a power of 2."""
    arrays = [v.detach().cpu().double().numpy() for v in (x, y)]
    _, exponent = np.frexp(max(np.abs(array).max() for array in arrays))
    scaled = [torch.from_numpy(np.ldexp(array, -exponent)) for array in arrays]
    return scaled[0], scaled[1]


def check_variation(x: Tensor, y: Tensor, kind: str) -> None:
    """Images vary: a constant one shows no motion. A graph is learned from many images: some may be blank."""
    for name, value in (("x", x), ("y", y)):
        low, high = (extreme(value.flatten(1), dim=1).values for extreme in (torch.min, torch.max))
        flat = torch.nonzero(low == high).flatten().tolist()
        if len(flat) == len(value) or (flat and kind != "graph"):
            raise ValueError(f"{name}: expected images that vary, but those of pairs {flat[:5]} are constant")
