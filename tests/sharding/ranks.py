"""Processes on the loopback interface, and the comparison of a sharded model with one process."""

from __future__ import annotations

import copy
import os
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

import lconv_fast as lc

# One server imports the libraries, once; ranks are forked from it.
SERVER = mp.get_context("forkserver")
SERVER.set_forkserver_preload(["lconv_fast.sharding", "lconv_fast.nets", "torch.distributed.checkpoint"])


def start(rank: int, world: int, folder: str, seconds: int, function, arguments) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1", RANK=str(rank), WORLD_SIZE=str(world))
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds))
    function(rank, world, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(world: int, function, *arguments, seconds: int = 30) -> None:
    """function(rank, world, *arguments) on `world` processes; an error of one is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(start, (world, folder, seconds, function, arguments), world, start_method="forkserver")


MESHES = {
    1: [((1,), ("z",))],
    2: [((2,), ("z",)), ((1, 2), ("z", "y"))],
    3: [((3,), ("z",))],
    4: [((4,), ("z",)), ((2, 2), ("z", "y"))],
}


def mesh_of(sizes: tuple[int, ...], names: tuple[str, ...]):
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.norm().item()
    return (found - expected).norm().item() / (scale or 1.0)


def whole(t: torch.Tensor | None):
    """A gradient or parameter of one process or of ranks, where learned fields are DTensors."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def compare(
    model, x, mesh, dims, forward: float = 1e-14, backward: float = 1e-12, what: str = "", call=None, **keywords
) -> None:
    """Results and all gradients of the model and of its sharded self, for a drawn cotangent; keywords: of shard."""
    plain = copy.deepcopy(model)
    inputs = x.clone().requires_grad_()
    expected = plain(inputs)
    u = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=expected.dtype)
    expected.backward(u)

    lc.sharding.shard(model, mesh, dims, **keywords)
    part = lc.sharding.local_part(x, mesh, dims).requires_grad_()
    found = (call or (lambda m, t: m(t)))(model, part)
    spread = found.dim() > max(dims) and found.shape[max(dims) :] != ()
    on_ranks = spread and found.shape != expected.shape
    if on_ranks:
        assert error_of(lc.sharding.full_tensor(found, mesh, dims), expected) <= forward, what
        u = lc.sharding.local_part(u, mesh, dims, like=found)
    else:
        assert error_of(found, expected) <= forward, what
    found.backward(u)
    assert error_of(lc.sharding.full_tensor(part.grad, mesh, dims), inputs.grad) <= backward, what
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in model.named_parameters():
        if gradients[name] is None:
            assert p.grad is None
            continue
        error = error_of(whole(p.grad), gradients[name])
        assert error <= backward or gradients[name].norm() < 1e-13 * x.numel(), (what, name, error)
