"""shard(model, mesh, dims): the model works on this rank's part of the domain."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from lconv_fast.checks import boolean
from lconv_fast.generators import Generators, GridGenerators
from lconv_fast.sharding.agree import described, same_everywhere, same_parameters, whole_shapes
from lconv_fast.sharding.calls import tensors_of, with_tensors
from lconv_fast.sharding.layout import Domain, Layout, split_evenly
from lconv_fast.sharding.plan import Plan, Planner
from lconv_fast.sharding.rules import REFUSALS, RULES
from lconv_fast.sharding.rules.lconv import lconv, mix_name
from lconv_fast.sharding.run import Running

Dims = Mapping[int, str]

# Layers that see all points, whatever they are given.
UNSUPPORTED = (
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.SyncBatchNorm,
)


def domain_of(caller: str, mesh: DeviceMesh, dims: Dims) -> Domain:
    """The axes of `mesh` that `dims` names, without those of one rank. Raises TypeError and ValueError."""
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"{caller}: expected mesh to be a DeviceMesh, got {type(mesh).__name__}")
    check_dims(caller, dims, mesh.mesh_dim_names or ())
    names = [name for name in mesh.mesh_dim_names or () if name in dims.values()]
    sizes = {name: mesh.size((mesh.mesh_dim_names or ()).index(name)) for name in names}
    names = [name for name in names if sizes[name] > 1]
    return Domain(
        names=tuple(names),
        sizes=tuple(sizes[name] for name in names),
        place=tuple(mesh.get_local_rank(name) for name in names),
        groups=tuple(mesh.get_group(name) for name in names),
        dims=tuple(sorted((dim, names.index(name)) for dim, name in dims.items() if name in names)),
    )


def check_dims(caller: str, dims: Dims, names: Sequence[str], lowest: int = 0) -> None:
    if not isinstance(dims, Mapping) or not all(
        isinstance(d, int) and not isinstance(d, bool) and isinstance(n, str) for d, n in dims.items()
    ):
        raise TypeError(
            f"{caller}: expected dims as {{dimension: name of a mesh axis}}, such as {{2: 'z', 3: 'y'}}, got {dims!r}"
        )
    if not dims or min(dims) < lowest:
        raise ValueError(
            f"{caller}: expected dims of {lowest} or more, the first spatial dimension of (N, C, *spatial) being "
            f"2, got {dict(dims)}"
        )
    for name in dims.values():
        if name not in names:
            raise ValueError(f"{caller}: expected mesh axes among {tuple(names)}, got {name!r}")
    if len(set(dims.values())) != len(dims):
        raise ValueError(f"{caller}: expected one mesh axis for each dimension, got {dict(dims)}")


TENSOR = "a tensor"  # stands for one among arguments that have to be constants


def _with_tensors_again(args: Any, kwargs: Any, tensors: list[Tensor]) -> tuple[Any, Any]:
    rest = list(tensors)

    def swap(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(swap(item) for item in value)
        return rest.pop(0) if isinstance(value, str) and value == TENSOR else value

    return tuple(swap(v) for v in args), {k: swap(v) for k, v in kwargs.items()}


_ALL: list[weakref.ref[Any]] = []


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _plan_while_tracing(number: int, key: Any, training: bool, args: Any, kwargs: Any) -> int:
    """Makes the plan while a compiler traces the model, which all ranks do together: nothing of it is in the graph."""
    sharding = _ALL[number]()
    assert sharding is not None  # the model that is being traced holds it
    if key not in sharding.plans:
        with unset_fake_temporarily():
            tensors = [torch.empty(shape, dtype=getattr(torch, dtype.split(".")[1])) for shape, dtype in key]
            args, kwargs = _with_tensors_again(args, dict(kwargs), tensors)
            sharding.agree(key, tensors, training, False, args, kwargs)
    return 0


class Sharding:
    """What the modules of a sharded model share: the domain, the model on whole shapes, and the plans made so far."""

    def __init__(
        self,
        domain: Domain,
        skeleton: nn.Module,
        fields: dict[str, tuple[str, ...]],
        check: bool,
        overlap: bool | None = None,
    ) -> None:
        self.overlap = overlap
        self.domain, self.skeleton, self.fields, self.check = domain, [skeleton], fields, check
        self.plans: dict[Any, Plan] = {}
        self.number = len(_ALL)
        _ALL.append(weakref.ref(self))
        self.current: Plan | None = None
        self.planner: Planner | None = None

    def plan(
        self, shapes: Sequence[tuple[Sequence[int], Layout, torch.dtype]], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Plan:
        """The plan for inputs of these whole shapes, in the places of the tensors among the arguments."""
        model = self.skeleton[0]
        planner = self.planner = Planner(self.domain, RULES, REFUSALS, self.overlap)
        try:
            tensors = [
                planner.keep(torch.empty(shape, dtype=dtype, device="meta"), layout) for shape, layout, dtype in shapes
            ]
            meta_args, meta_kwargs = with_tensors(args, kwargs, tensors)
            planner.trace(model, meta_args, meta_kwargs)
        finally:
            self.planner = None
        planner.plan.held = planner.sizes
        return planner.plan

    def begin(self, training: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Finds or makes the plan for a call of the model, with all ranks."""
        tensors = tensors_of(args, kwargs)
        key = tuple([(tuple([int(n) for n in t.shape]), str(t.dtype)) for t in tensors])
        if torch.compiler.is_compiling():
            blank_args, blank_kwargs = with_tensors(args, kwargs, [TENSOR] * len(tensors))  # type: ignore[list-item]
            _plan_while_tracing(self.number, key, training, blank_args, tuple(blank_kwargs.items()))
            self.current = self.plans[key]
            return
        if not self.check and key in self.plans:
            self.current = self.plans[key]
            return
        self.current = self.agree(key, tensors, training, self.check, args, kwargs)

    def agree(
        self, key: Any, tensors: list[Tensor], training: bool, look: bool, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Plan:
        """Asks all ranks for the shapes of their parts; the plan for the whole that they make."""
        wholes = whole_shapes(self.domain, described(self.domain, tensors, training, look))
        whole_key = (key, tuple(wholes))
        if whole_key not in self.plans:
            shapes = [(shape, layout, t.dtype) for (shape, layout), t in zip(wholes, tensors, strict=True)]
            self.plans[whole_key] = self.plan(shapes, args, kwargs)
        self.plans[key] = self.plans[whole_key]
        return self.plans[key]


def _check_traceable(plan: Plan, path: str) -> None:
    """Compilers replace F.pad before a mode of torch functions sees it."""
    if torch.compiler.is_compiling() and any(e.needs_plan for e in plan.entries.get((path, "pad"), {}).values()):
        raise RuntimeError(f"{path}: padding along a sharded dimension does not compile; take padding_mode='zeros'")


class _Root:
    """Mixed into the class of the model itself."""

    _sharding: Sharding

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._sharding.begin(self.training, args, kwargs)  # type: ignore[attr-defined]
        _check_traceable(self._sharding.current, "")  # type: ignore[arg-type]
        with Running(self._sharding.current, ""):  # type: ignore[arg-type]
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _Part:
    """Mixed into the class of every module within it."""

    _sharding: Sharding
    _sharding_path: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._sharding.current is None:
            raise RuntimeError(
                f"{self._sharding_path}: expected the sharded model to be called as a whole first, which plans "
                "for its shapes"
            )
        _check_traceable(self._sharding.current, self._sharding_path)
        with Running(self._sharding.current, self._sharding_path):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _Generators:
    """Mixed into the class of generators: their grid is the shard, the operator that of the whole grid."""

    _sharding: Sharding
    _sharding_path: str

    def check_shape(self, spatial: Sequence[int]) -> None:
        if self._sharding.planner is not None:
            super().check_shape(spatial)  # type: ignore[misc]

    def mix(
        self,
        coefficients: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        groups: int,
    ) -> Tensor:
        sharding, path = self._sharding, self._sharding_path
        with torch._C.DisableTorchFunction():
            planner = sharding.planner
            if planner is not None:
                result = super().mix(coefficients, input, weight, bias, stride, groups)  # type: ignore[misc]
                if not planner.layout(input):
                    if sharding.fields.get(path) and sharding.domain.sizes:
                        planner.refuse("a sampled field", "is sharded, and its input is whole on every rank")
                    planner._everywhere(result)
                    return result
                arguments = (coefficients, input, weight, bias, stride, groups)
                return lconv(planner, path, self, sharding.fields.get(path, ()), arguments, result)  # type: ignore[arg-type]
            entry = None if sharding.current is None else sharding.current.find(path, mix_name(stride), (input,), {})
            if entry is None:
                if isinstance(coefficients, DTensor):  # on mesh axes of one rank, whose part is the whole
                    coefficients = coefficients.to_local()
                return super().mix(coefficients, input, weight, bias, stride, groups)  # type: ignore[misc]
            return entry(coefficients, input, weight, bias, stride, groups)


def _mix_in(module: nn.Module, part: type, sharding: Sharding, path: str) -> None:
    # As fully_shard does: the class of this one module gets a base more, and keeps its name.
    kind = type(module)
    module.__class__ = type(kind.__name__, (part, kind), {"__module__": kind.__module__})
    module.__dict__["_sharding"], module.__dict__["_sharding_path"] = sharding, path


def skeleton_of(model: nn.Module) -> nn.Module:
    """A copy without memory, on whose shapes plans are made."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        meta = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(meta, t.requires_grad) if isinstance(t, nn.Parameter) else meta
    return copy.deepcopy(model, memo)


def check_layers(model: nn.Module) -> None:
    for path, module in model.named_modules():
        where = f"shard: {path or 'model'} ({type(module).__name__})"
        if isinstance(module, UNSUPPORTED):
            raise ValueError(f"{where} sees all points of the domain at once, which a shard does not hold")
        if isinstance(module, Generators) and (
            not isinstance(module, GridGenerators) or module.stencil() is None or module.transposed
        ):
            raise ValueError(
                f"{where}: expected generators of taps on a grid, not transposed; these need points at any "
                "distance, or coefficients around the shard"
            )


def shard(
    model: nn.Module, mesh: DeviceMesh, dims: Dims, *, check: bool = True, overlap: bool | None = None
) -> nn.Module:
    """Makes `model` work on this rank's part of the domain, in place, with the results and gradients of one process.

    After it, `model(x)` takes parts (`local_part`) and returns parts. Halos are received where layers need them (L-conv
    layers of any boundary and stride, convolutions, transposed convolutions, pooling, padding, interpolation by integer
    factors, as layers or as functions), norm layers take the statistics of the whole domain, means and sums over it
    are those of all ranks. Of a result that lies on the ranks, the gradients are those of the sum of all ranks'
    losses; of one that is the same on every rank (after a global mean), those of the loss that each computes alike.

    Learned and fixed fields of sampled generators become DTensors, sharded like the domain. All other parameters stay
    as they are, the same on every rank, and get their whole gradient. `fully_shard(model, mesh=mesh["dp"])` on the data
    axis may follow, or DistributedDataParallel for a model without sampled fields (it takes no DTensors).

    Args:
        model: a module; layers that see all points at once (attention, dense or spectral generators) are refused.
        mesh: a DeviceMesh whose axes are named; those of `dims` alone are used.
        dims: {dimension of the input (N, C, *spatial): name of a mesh axis}, the first spatial dimension being 2.
        check: at each call (not when compiled), the ranks compare the shapes of their parts and look for NaN and
        infinity, with one small sum; an
            error on one is an error on all. False: they compare shapes once for each shape of this rank, and do not
            look for NaN.
        overlap: whether L-conv layers of stride 1 first compute the points that see no halo, while halos travel, then
            the borders; in the backward pass the other way round. None: where halos of a MiB or more are hidden behind
            an interior of at least half the shard. Not when compiled: compilers order what is sent by themselves.

    Returns:
        the model.

    Raises:
        TypeError, ValueError: on all ranks alike, before the model communicates: arguments that differ between ranks,
        parameters that differ, layers that
            cannot be sharded (named with their path; when the model is first called on a shape), shards that are too
            thin for a halo.
        FloatingPointError: NaN or infinity in the input of any rank, on all ranks.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"shard: expected model to be a Module, got {type(model).__name__}")
    check = boolean("check", check)
    if hasattr(model, "_sharding"):
        raise ValueError("shard: the model is sharded already")
    domain = domain_of("shard", mesh, dims)
    check_dims("shard", dims, mesh.mesh_dim_names or (), 2)
    overlap = overlap if overlap is None else boolean("overlap", overlap)
    same_everywhere(domain, "shard", "dims, check and overlap", (sorted(dims.items()), check, overlap))
    check_layers(model)
    same_parameters(domain, model)
    sharding = Sharding(domain, skeleton_of(model), {}, check, overlap)
    for path, module in sharding.skeleton[0].named_modules():
        if isinstance(module, GridGenerators):
            _mix_in(module, _Generators, sharding, path)
    for path, module in list(model.named_modules()):
        if isinstance(module, GridGenerators):
            names = shard_fields(module, mesh, dims, path)
            if names:
                sharding.fields[path] = names
            _mix_in(module, _Generators, sharding, path)
        elif module is model:
            _mix_in(module, _Root, sharding, "")
        else:
            _mix_in(module, _Part, sharding, path)
    return model


def shard_fields(generators: GridGenerators, mesh: DeviceMesh, dims: Dims, path: str) -> tuple[str, ...]:
    """Turns tensors (n_L, m, *spatial) of sampled generators into DTensors on the mesh axes of `dims`; their names."""
    spatial = generators.grid_shape()
    if spatial is None:
        return ()
    names = mesh.mesh_dim_names or ()
    axes = [name for name in names if name in dims.values()]
    part = mesh[tuple(axes)] if len(axes) > 1 or len(names) > 1 else mesh
    by_name = {name: dim for dim, name in dims.items()}
    found = []
    for name, t in (*generators._parameters.items(), *generators._buffers.items()):
        if t is None or tuple(t.shape[2:]) != tuple(spatial):
            continue
        for axis in axes:
            if by_name[axis] < t.dim():
                split_evenly(f"shard: {path}.{name}", t.shape, by_name[axis], 0, mesh.size(names.index(axis)), axis)
        placements = [Shard(by_name[axis]) if by_name[axis] < t.dim() else Replicate() for axis in axes]
        local = t.detach()
        for axis in axes:
            if by_name[axis] < t.dim():
                start = split_evenly("shard", t.shape, by_name[axis], 0, mesh.size(names.index(axis)), axis).offsets
                r = mesh.get_local_rank(axis)
                local = local.narrow(by_name[axis], start[r], start[r + 1] - start[r])
        value = DTensor.from_local(local.clone(), part, placements, run_check=False, shape=t.shape, stride=t.stride())
        if name in generators._parameters:
            generators._parameters[name] = nn.Parameter(value, t.requires_grad)
        else:
            generators._buffers[name] = value
        found.append(name)
    return tuple(found)
