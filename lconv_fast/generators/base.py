"""What every kind of generators answers for itself: its matrices, its transposes, and the layer made of them."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lconv_fast import form, grid
from lconv_fast.checks import boolean, check_float, check_points, check_types, extents
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Stencil, accumulate_type

Self = TypeVar("Self", bound="Generators")
NO_TAPS = Stencil(CoefficientKind.CONSTANT, (), (), (), PaddingMode.ZEROS)


class Generators(nn.Module, ABC):
    """A basis of n_L linear operators L_i on functions on a space S; an nn.Module, whose numbers may be learnable.

    A kind says how it acts (`act`, `check_shape`, `coefficients`, `mean_square`); the layer (`mix`) follows from that,
    and kinds with a fused kernel have a `mix` of their own.
    """

    num_generators: int
    ndim: int | None = None  # spatial axes; None: any number, or no grid at all
    channel_dim: int = 1  # of f: (N, C, *spatial) on grids, (N, nodes, C) with -1
    transposed: bool = False
    # Makes the numbers of a named basis again, in the order of the tensors.
    _remake: Callable[[], tuple[Tensor, ...]] | None = None
    _changes: tuple[Callable[[Any], Any], ...] = ()  # and what was done to them since (generators.normalise)
    _raw: dict[str, tuple[Tensor, int]] = {}  # noqa: RUF012 - replaced, never changed

    @abstractmethod
    def coefficients(self) -> Tensor:
        """The numbers that the generators are made of, as `act` and `mix` take them; differentiable in the
        parameters."""

    @abstractmethod
    def check_shape(self, spatial: Sequence[int]) -> None:
        """Raises ValueError for a space on which these generators do not act."""

    @abstractmethod
    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        """L_i f for every i, (N, C, *spatial) -> (N, n_L, C, *spatial), of checked arguments; in f's dtype, or in the
        one it is summed in."""

    @abstractmethod
    def mean_square(self) -> Tensor:
        """The variance that L_i gives to white noise of variance 1, averaged over the points of S: (n_L,)."""

    def stencil(self) -> Stencil | None:
        """The taps by which the fused kernels compute these generators, on grids of any size; None where they are
        computed otherwise."""
        return None

    def forward(self, f: Tensor) -> Tensor:
        """L_i f for every i: (N, C, *spatial) -> (N, n_L, C, *spatial), differentiable to every order."""
        axes = "" if self.ndim is None else f" with {self.ndim} spatial axes"
        dims = tuple(range(3, 16)) if self.ndim is None else (self.ndim + 2,)
        check_float("f", f, dims, f"(N, C, *spatial){axes}")
        check_points("f", f, f.shape[2:])
        self.check_filled()
        self.check_shape(f.shape[2:])
        coefficients = self.coefficients()
        check_types(f, generators=coefficients)
        with full_precision(f):
            return self.act(coefficients, f).to(f.dtype)

    def mix(
        self,
        coefficients: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        groups: int,
    ) -> Tensor:
        """y = f W0^T + sum_i (L_i f) Wi^T + bias at every stride-th point: eq. (17) of Dehmamy et al. 2021.

        input (N, C_in, *spatial), weight (n_L + 1, C_out, C_in / groups), bias (C_out,) or None, one stride for each
        axis: checked, of one dtype. Returns (N, C_out, *ceil(spatial / stride)).
        """
        dtype = accumulate_type(input.dtype)
        with full_precision(input):
            f = input.to(dtype)
            moved = self.act(coefficients, f)
            terms = torch.cat([grid.every(f, stride).unsqueeze(1), grid.every(moved, stride)], 1)
            y = mix_channels(terms.flatten(3), weight.to(dtype), None if bias is None else bias.to(dtype), groups)
            return y.reshape(*y.shape[:2], *terms.shape[3:]).to(input.dtype)

    def to_dense(self, spatial_shape: Sequence[int]) -> Tensor:
        """The matrices (n_L, d, d), d = prod(spatial_shape), points in row-major order. For tests and small grids."""
        spatial = extents("spatial_shape", spatial_shape)
        self.check_shape(spatial)
        v, points = self.coefficients(), math.prod(spatial)
        units = torch.eye(points, dtype=v.dtype, device=v.device).reshape(points, 1, *spatial)
        return self(units)[:, :, 0].flatten(2).permute(1, 2, 0)

    def transpose(self: Self) -> Self:
        """The exact matrix transposes L_i^T (boundaries included), with the same parameters."""
        # Tensors and parametrizations are shared; dictionaries of its own make the copy a module in its own right.
        kind: Any = type(self)
        if parametrize.is_parametrized(self):  # its class was made for this one module, and is changed with it
            space = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
            kind = type(kind.__name__, kind.__bases__, space)
        result = kind.__new__(kind)
        for name, value in self.__dict__.items():
            object.__setattr__(result, name, copy.copy(value) if isinstance(value, dict | set) else value)
        if parametrize.is_parametrized(self):
            result._modules["parametrizations"] = nn.ModuleDict(
                dict(self.get_submodule("parametrizations").named_children())
            )
        result.transposed = not self.transposed
        return result

    def reset_parameters(self) -> None:
        """Gives a named basis its numbers again; others keep theirs.

        Raises RuntimeError where those are memory that nothing was written to (`check_filled`).
        """
        if self._remake is None or not self._named_tensors():
            return self.check_filled()
        with torch.no_grad(), torch.device("cpu"):
            for tensor, numbers in zip(self._named_tensors().values(), self._remake(), strict=True):
                tensor.copy_(numbers)
        self._raw = {}
        for change in self._changes:
            change(self)

    def check_filled(self) -> None:
        """Raises RuntimeError for numbers that came from the meta device, as memory nothing was written to."""
        # A trace holds no counts of writes.
        if torch.compiler.is_compiling():
            return
        if raw := [name for name in self._raw if self._is_raw(name)]:
            raise RuntimeError(
                f"generators: {' and '.join(raw)} of {type(self).__name__} came from the meta device and were never "
                "filled: load a state dict, or make the generators on the device where they are used"
            )

    def _named_tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in (*self._parameters.items(), *self._buffers.items()) if t is not None}

    def _is_raw(self, name: str) -> bool:
        """The very tensor that came from the meta device, and not written to since."""
        tensor, version = self._raw.get(name, (None, 0))
        return tensor is not None and tensor is self._named_tensors().get(name) and tensor._version == version

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        lost = [name for name, t in self._named_tensors().items() if t.is_meta or self._is_raw(name)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        now = self._named_tensors()
        # Inference tensors have no count of writes.
        self._raw = {n: (now[n], now[n]._version) for n in lost if not (now[n].is_meta or now[n].is_inference())}
        if self._raw and self._remake is not None:
            self.reset_parameters()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_raw": [name for name in self._raw if self._is_raw(name)]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        now = self._named_tensors()
        self._raw = {name: (now[name], now[name]._version) for name in state.get("_raw", ())}

    def extra_repr(self) -> str:
        return f"num_generators={self.num_generators}" + (", transposed=True" if self.transposed else "")

    def _keep(self, name: str, value: Tensor, learnable: bool) -> None:
        value = value.detach().clone()
        if boolean("learnable", learnable):
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)


def full_precision(t: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, which would round what is summed in full."""
    if not t.is_meta and torch.is_autocast_enabled(t.device.type):
        return torch.autocast(t.device.type, enabled=False)
    return contextlib.nullcontext()


def mix_channels(terms: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """sum_r terms_r W_r^T + bias, in one product: (N, rows, C_in, points) -> (N, C_out, points).

    The rows stand beside the channels as in one layer without generators, whose sums have a fixed order for any number
    of threads, in the gradients too.
    """
    rows, outs, ins = weight.shape
    batch, _, _, points = terms.shape
    f = terms.reshape(batch, rows, groups, ins, points).transpose(1, 2).reshape(batch, groups * rows * ins, points)
    w = weight.reshape(rows, outs, ins).transpose(0, 1).reshape(1, outs, rows * ins)
    return form.lconv(terms.new_empty(0, 0), f, w, bias, NO_TAPS, [1], groups)
