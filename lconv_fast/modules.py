"""The L-conv layer as modules that stand where nn.Conv1d, nn.Conv2d and nn.Conv3d stood."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from lconv_fast.checks import (
    boolean,
    check_device,
    check_dtype,
    check_float,
    check_groups,
    check_no_kernel,
    check_on_grid,
    check_types,
    has_bias,
    per_axis,
    positive_int,
)
from lconv_fast.epilogue import check_activation
from lconv_fast.functional import autocast, lconv_for
from lconv_fast.generators import Generators, GraphGenerators, named
from lconv_fast.initialization import keep_variance, keep_variance_factorized
from lconv_fast.windows.place import call_in_place
from lconv_fast.windows.stack import Place

G = TypeVar("G", bound=Generators)


def _moved(generators: G, device: torch.device | str | None, dtype: torch.dtype | None) -> G:
    # nn.Module.to replaces parameters even where nothing is asked for, which fake ones refuse.
    return generators if device is None and dtype is None else generators.to(device=device, dtype=dtype)


class _LConv(nn.Module):
    ndim: int
    bias: nn.Parameter | None
    activation: str | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        generators: str | Generators = "unit_laplacian",
        *,
        stride: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        factorized: bool = False,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **generator_keywords: Any,
    ) -> None:
        super().__init__()
        check_no_kernel(type(self).__name__, generators, generator_keywords)
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        check_groups(groups, in_channels, out_channels)
        check_dtype(dtype)
        device = check_device(device)
        bias, factorized = has_bias(bias), boolean("factorized", factorized)
        self.groups = groups
        self.stride = per_axis("stride", stride, self.ndim)
        self.factorized = factorized
        self.activation = check_activation(activation)
        self.generators = _moved(self._make_generators(generators, generator_keywords), device, dtype)

        count, ins = self.generators.num_generators, in_channels // groups
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if factorized:
            self.weight0 = nn.Parameter(torch.empty(out_channels, ins, **factory))
            self.epsilon = nn.Parameter(torch.empty(count, in_channels, ins, **factory))
        else:
            self.weight = nn.Parameter(torch.empty(count + 1, out_channels, ins, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _make_generators(self, generators: str | Generators, keywords: dict[str, Any]) -> Generators:
        if isinstance(generators, str):
            return named(generators, self.ndim, **keywords)
        if not isinstance(generators, Generators):
            raise TypeError(f"generators: expected a name or a Generators object, got {type(generators).__name__}")
        check_on_grid(generators)
        if keywords:
            raise TypeError(
                f"{type(self).__name__}: {', '.join(keywords)}: these go with a name; a Generators object has its own"
            )
        if generators.ndim not in (None, self.ndim):
            raise ValueError(f"generators: expected {self.ndim} axes for {type(self).__name__}, got {generators.ndim}")
        return generators

    def reset_parameters(self) -> None:
        """Keeps the variance of white noise: independent uniform weights with Var W^0 = 1 / ((n_L + 1) fan_in) and
        Var W^i = 1 / ((n_L + 1) fan_in r_i), fan_in = in_channels / groups, and bias 0.

        r_i is the variance that L_i gives to white noise of variance 1, averaged over the grid
        (`Generators.mean_square`; for affine fields: x uniform on [-1, 1]^n), so that W^0 and each generator contribute
        one part in n_L + 1. Factorized, W^i = W^0 eps^i has the same variance with Var eps^i = 1 / (fan_in r_i).
        A generator that is zero (r_i = 0) gets weights as if r_i were 1.
        """
        with torch.no_grad():
            ins = self.in_channels // self.groups
            if not self.factorized:
                keep_variance(self.weight, self.generators, ins)
            else:
                keep_variance_factorized(self.weight0, self.epsilon, self.generators, ins)
            if self.bias is not None:
                self.bias.zero_()

    def __getattr__(self, name: str) -> Any:
        # nn.Module asks here for what is neither attribute nor parameter: with factorized=True, the weight.
        if name == "weight" and self.__dict__.get("factorized"):
            return self._composed_weight()
        return nn.Module.__getattr__(self, name)

    def _composed_weight(self) -> Tensor:
        """W^0, and W^i = W^0 eps^i within each group: (n_L + 1, out, in / groups)."""
        ins = self.in_channels // self.groups
        weight0 = self.weight0.reshape(self.groups, -1, ins)
        epsilon = self.epsilon.reshape(-1, self.groups, ins, ins)
        composed = torch.matmul(weight0, epsilon)  # (n_L, groups, out / groups, in / groups)
        return torch.cat([weight0.reshape(1, -1, ins), composed.flatten(1, 2)])

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        name, weight = type(self).__name__, self.weight

        def call(f: Tensor, window: Place | None, sample: int | None = None) -> Tensor:
            added = residual if residual is None or sample is None else residual[sample : sample + 1]
            return lconv_for(
                name,
                f,
                weight,
                self.generators,
                self.bias,
                self.stride,
                self.groups,
                self.ndim,
                window,
                residual=added,
                activation=self.activation,
            )

        return call_in_place(self, input, call)

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script does not compile L-conv layers; use torch.compile, torch.export, "
            "or torch.jit.trace the model that lconv_fast.convert.lower makes of it"
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}"
        if set(self.stride) != {1}:
            text += f", stride={self.stride}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.factorized:
            text += ", factorized=True"
        if self.activation is not None:
            text += f", activation={self.activation}"
        return text


_DOC = """y = activation(f W0^T + sum_i (L_i f) Wi^T + bias + residual) on {ndim}D grids, with neither activation nor
    residual unless asked for: eq. (10), (15) and (17) of Dehmamy et al. 2021.

    Stands where nn.Conv{ndim}d stood: input (N, C_in, *spatial) or (C_in, *spatial), any memory format; output
    (N, C_out, *ceil(spatial / stride)) in the same memory format. With affine generators nothing depends on the size of
    the grid.

    Args:
        in_channels, out_channels: numbers of channels, divisible by groups.
        generators: the name of a basis (translation, rotation, scaling, se, similitude, sl, gl, affine, lorentz of
            affine fields; laplacian, unit_laplacian, second of second order; affine+laplacian, ... of both:
            lconv_fast.generators.named), or a Generators object. The default, d_a and the Laplacian at equal size, has
            n + 2 matrices in the place of 3^n and was as accurate as a convolution where bases of first order were not
            (docs/networks.md).
        stride: y is computed at every stride-th point of each axis, from the first on; one integer or one per axis.
        groups: channels are mixed within groups alone.
        bias: adds a learnable bias, 0 at first; None as False.
        factorized: W^i = W^0 eps^i with parameters weight0 (out, in / groups) and epsilon (n_L, in, in / groups);
            `weight` is then composed from them.
        activation: None, "relu", "gelu" or "silu". `layer(input, residual)` adds residual, of the output's shape,
            before it.
        device, dtype: of the parameters and of the generators, which are moved where given.
        **generator_keywords: accuracy, padding_mode, coordinate_scale, learnable, with a name: see AffineGenerators.

    Attributes:
        weight: (n_L + 1, out_channels, in_channels / groups), weight[0] = W^0.
        bias: (out_channels,) or None.
        generators: the Generators object.

    The initialisation keeps the variance of white noise through the layer: see `reset_parameters`.

    Raises:
        TypeError, ValueError: in the constructor and in forward, before anything is computed, naming the argument, what
            came and what was expected.
    """


class LConv1d(_LConv):
    __doc__ = _DOC.format(ndim=1)
    ndim = 1


class LConv2d(_LConv):
    __doc__ = _DOC.format(ndim=2)
    ndim = 2


class LConv3d(_LConv):
    __doc__ = _DOC.format(ndim=3)
    ndim = 3


class LConvGraph(nn.Module):
    """y = f W0^T + sum_i (L_i f) Wi^T + bias on the nodes of a graph: eq. (10) of Dehmamy et al. 2021.

    Input (N, nodes, C_in) or (nodes, C_in); output the same with C_out. Differentiable to every order, in the weights
    of the edges too.

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
        if getattr(generators, "channel_dim", None) != -1:
            raise TypeError(f"generators: expected GraphGenerators, got {type(generators).__name__}")
        check_dtype(dtype)
        device, bias = check_device(device), has_bias(bias)
        self.generators = _moved(generators, device, dtype)
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
        self.generators.check_filled()
        self.generators.check_shape(f.shape[1:2])
        coefficients = self.generators.coefficients()
        f, weight, bias = autocast(f, self.weight, self.bias)
        check_types(f, weight=weight, bias=bias, generators=coefficients)
        y = self.generators.mix(coefficients, f, weight, bias)
        return y if input.dim() == 3 else y.squeeze(0)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}" + (", bias=False" if self.bias is None else "")
