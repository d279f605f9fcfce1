"""What a step of a sharded model costs: counted from its plan, and a documented model of time.

    t(compute) = max(flops / peak, bytes / bandwidth),    t(network) = sum over messages of (latency + bytes / link)
    efficiency = t(compute) / (t(compute) + t(network))
    overlapped:  t(compute) / (max(t(compute), t(halos of L-convs of stride 1)) + t(rest of the network))

Halos are counted exactly (they are what the ranks send). Time is a prediction: kernels reach the roofline, and what is
overlapped is hidden as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.flop_counter import FlopCounterMode

from lconv_fast.checks import check_dtype, check_module, extents, positive_int
from lconv_fast.generators import GridGenerators
from lconv_fast.ops import flops as flops  # registers the formulas of the operators
from lconv_fast.sharding.layout import Domain, Layout, split_evenly


@dataclass(frozen=True)
class Device:
    name: str
    peak: float  # flops a second, in the half types on tensor cores
    bandwidth: float  # bytes a second of its memory


@dataclass(frozen=True)
class Link:
    name: str
    bandwidth: float  # bytes a second and direction, of one device
    latency: float  # seconds of a collective


# From the vendors' data sheets; latencies are those of small NCCL messages, rounded up.
H200 = Device("H200", 989e12, 4.8e12)
LINKS = (Link("NVLink", 450e9, 10e-6), Link("InfiniBand", 50e9, 20e-6))


@dataclass(frozen=True)
class Report:
    """What `explain` found, for the busiest rank; `str()` shows it as a table."""

    shape: tuple[int, ...]
    ranks: int
    halo_bytes: int  # sent in one step, forward and backward
    sum_bytes: int  # given to sums over the ranks in one step
    messages: int
    overlapped: tuple[int, int]  # (messages, bytes) of halos that can travel while a layer computes
    flops: float  # of one step
    traffic: float  # bytes of activations read and written in one step
    memory: int  # bytes: parameters with gradients and two moments, and every module's result
    device: Device
    rows: tuple[tuple[str, str, int, int], ...]  # (module, what, values forward, values backward)

    @property
    def compute(self) -> float:
        """Seconds."""
        return max(self.flops / self.device.peak, self.traffic / self.device.bandwidth)

    def network(self, link: Link) -> float:
        """Seconds."""
        return self.messages * link.latency + (self.halo_bytes + 2 * self.sum_bytes) / link.bandwidth

    def efficiency(self, link: Link, overlapped: bool = False) -> float:
        """overlapped: with halos behind the interior of their layer (`shard`'s `overlap`)."""
        network = self.network(link)
        if not overlapped:
            return self.compute / (self.compute + network)
        hidden = self.overlapped[0] * link.latency + self.overlapped[1] / link.bandwidth
        return self.compute / (max(self.compute, hidden) + network - hidden)

    def __str__(self) -> str:
        lines = [
            f"input {self.shape} on {self.ranks} ranks; one step of the busiest rank:",
            f"  halos sent        {self.halo_bytes / 1e6:12.3f} MB",
            f"  sums over ranks   {self.sum_bytes / 1e6:12.3f} MB",
            f"  messages          {self.messages:12d}",
            f"  memory            {self.memory / 1e9:12.3f} GB (parameters, gradients, two moments, results of "
            "all layers)",
            f"  compute           {self.compute * 1e3:12.3f} ms, predicted for {self.device.name}",
        ]
        for link in LINKS:
            lines.append(
                f"  {link.name:17s} {self.network(link) * 1e3:12.3f} ms, efficiency {self.efficiency(link):.3f}, "
                f"{self.efficiency(link, overlapped=True):.3f} overlapped, predicted"
            )
        return "\n".join(lines)


def explain(
    model: nn.Module,
    shape: Sequence[int],
    mesh: DeviceMesh | Mapping[str, int],
    dims: Mapping[int, str] | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: Device = H200,
) -> Report:
    """Bytes, memory and predicted efficiency of one training step; runs nothing and sends nothing.

    Args:
        model: a module, sharded or not.
        shape: of the whole input, (N, C, *spatial).
        mesh: a DeviceMesh, or {name: ranks} for one that does not exist.
        dims: as for `shard`; None: the mesh axes in order, on the spatial dimensions from 2 on.
        dtype: of activations; parameters are counted in float32.
        device: the roofline's peak and bandwidth.

    Raises:
        ValueError: what `shard` refuses on this shape.
    """
    from lconv_fast.sharding import model as sharding

    check_module("model", model)
    if isinstance(shape, Tensor):
        shape = tuple(shape.shape)
    shape = extents("shape", shape)
    if dtype is None:
        raise TypeError("dtype: expected a real floating-point type, got None")
    check_dtype(dtype)
    if not isinstance(device, Device):
        raise TypeError(f"device: expected a Device, such as H200, got {type(device).__name__}")
    if isinstance(mesh, Mapping):
        for name, ranks in mesh.items():
            if not isinstance(name, str):
                raise TypeError(f"mesh: expected {{name: ranks}} or a DeviceMesh, got {mesh!r}")
            positive_int("mesh", ranks)
    elif not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh: expected {{name: ranks}} or a DeviceMesh, got {type(mesh).__name__}")
    if len(shape) < 3:
        raise ValueError(f"shape: expected (N, C, *spatial), got {shape}")
    sizes = (
        dict(mesh) if isinstance(mesh, Mapping) else {n: mesh.size(k) for k, n in enumerate(mesh.mesh_dim_names or ())}
    )
    known = getattr(model, "_sharding", None)
    if dims is None:
        names = list(known.domain.names) if known is not None else list(sizes)
        dims = (
            {d: names[a] for d, a in known.domain.dims}
            if known is not None
            else {2 + k: n for k, n in enumerate(names)}
        )
    sharding.check_dims("explain", dims, tuple(sizes), 2)
    if max(dims) >= len(shape):
        raise ValueError(f"dims: expected dimensions below {len(shape)} for a shape {shape}, got {dict(dims)}")
    names = [n for n in sizes if n in dims.values() and sizes[n] > 1]
    domain = Domain(
        tuple(names),
        tuple(sizes[n] for n in names),
        tuple((sizes[n] - 1) // 2 for n in names),
        (None,) * len(names),
        tuple(sorted((d, names.index(n)) for d, n in dims.items() if n in names)),
    )
    if known is None:
        sharding.check_layers(model)
    skeleton = known.skeleton[0] if known is not None else sharding.skeleton_of(model)
    used = known or sharding.Sharding(domain, skeleton, _fields(skeleton), False)
    if known is None:
        for path, module in skeleton.named_modules():
            if isinstance(module, GridGenerators):
                sharding._mix_in(module, sharding._Generators, used, path)
    layout: Layout = tuple(
        (d, split_evenly("explain", shape, d, a, domain.sizes[a], domain.names[a])) for d, a in domain.dims
    )
    of_model = next((p.dtype for p in skeleton.parameters() if p.is_floating_point()), torch.float32)
    before, used.domain = used.domain, domain
    try:
        with FlopCounterMode(display=False) as counter:
            plan = used.plan([(tuple(shape), layout, of_model)], (torch.empty(0, device="meta"),), {})
    finally:
        used.domain = before
    return _report(
        skeleton, plan, tuple(shape), domain, counter.get_total_flops(), torch.finfo(dtype).bits // 8, device
    )


def _fields(skeleton: nn.Module) -> dict[str, tuple[str, ...]]:
    return {
        p: ("field",)
        for p, m in skeleton.named_modules()
        if isinstance(m, GridGenerators) and m.grid_shape() is not None
    }


def _report(
    skeleton: nn.Module, plan: Any, shape: tuple[int, ...], domain: Domain, flops: int, size: int, device: Device
) -> Report:
    halos = [c for c in plan.costs if " halo " in c.kind]
    sums = [c for c in plan.costs if c.kind.endswith(" sum")]
    hidden = [c for c in halos if c.where in plan.overlapped]
    values = sum(math.prod(local) for _, local, _ in plan.held)
    parameters = sum(p.numel() for p in skeleton.parameters())
    return Report(
        shape=shape,
        ranks=domain.ranks,
        halo_bytes=size * sum(c.values + c.backward for c in halos),
        sum_bytes=4 * sum(c.values + c.backward for c in sums),
        messages=2 * len(halos) + len(sums) * len(domain.sizes),
        overlapped=(2 * len(hidden), size * sum(c.values + c.backward for c in hidden)),
        flops=3 * flops / domain.ranks,  # backward computes twice what forward does
        traffic=6 * size * values,  # each result is written, read, and met twice more with its gradient
        memory=16 * parameters + size * values,
        device=device,
        rows=tuple((c.where, c.kind, c.values, c.backward) for c in plan.costs),
    )
