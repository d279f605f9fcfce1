"""Data x space: FSDP2 and DDP on the data axis, checkpoints, compilation, bytes and memory."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import compare, error_of, mesh_of, run_ranks, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import lconv_fast as lc

FULL = (12, 9)
DIMS = {2: "z"}


def network(seed: int = 0, sampled: bool = True) -> nn.Module:
    """With a learned field, constant taps, norms and a stride; batch statistics would be those of one data-parallel
    rank."""
    torch.manual_seed(seed)
    field = lc.FieldGenerators(torch.randn(2, 2, *FULL), learnable=True)
    taps = lc.StencilGenerators(torch.randn(2, 3), [[0, 1], [1, 0], [-1, -1]], learnable=True)
    return nn.Sequential(
        lc.LConv2d(2, 4, field if sampled else "affine"),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        lc.LConv2d(4, 4, "affine", padding_mode="circular", learnable=True),
        nn.ReLU(inplace=True),
        lc.LConv2d(4, 4, taps, stride=2, bias=False),  # whose gradient the norm makes 0
        nn.InstanceNorm2d(4, affine=True),
        nn.Conv2d(4, 2, 3, padding=1),
    ).double()


def data(step: int):
    random = torch.Generator().manual_seed(100 + step)
    return torch.randn(4, 2, *FULL, generator=random).double(), torch.randn(4, 2, 6, 5, generator=random).double()


def train(model, optimiser, steps, mesh=None, dims=None, examples=1):
    """Steps on the mean square error over all examples and points."""
    for step in steps:
        x, target = data(step)
        count = target.numel()
        if mesh is not None:
            x = lc.sharding.local_part(x, mesh, dims)
        y = model(x)
        if mesh is not None:
            target = lc.sharding.local_part(target, mesh, dims, like=y)
        # Data-parallel wrappers take the mean over their ranks, spatial ones the sum.
        loss = (y - target).square().sum() / count * examples
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _same_as_one_process(rank, world, wrap):
    mesh = mesh_of((2, world // 2), ("dp", "z"))
    one, model = (network(sampled=wrap != "ddp") for _ in range(2))  # which takes no DTensors
    optimiser = torch.optim.AdamW(one.parameters(), lr=1e-2)
    train(one, optimiser, range(3))
    lc.sharding.shard(model, mesh["z"], DIMS)
    if wrap == "ddp":
        model = DistributedDataParallel(model, process_group=mesh.get_group("dp"))
    else:
        for layer in model if wrap == "fsdp of layers" else ():
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), range(3), mesh, {0: "dp", **DIMS}, 2)
    found = dict(model.module.named_parameters() if wrap == "ddp" else model.named_parameters())
    for name, p in one.named_parameters():
        assert error_of(whole(found[name]), p) < 1e-12, (wrap, name)


@pytest.mark.parametrize("wrap", ["fsdp", "fsdp of layers", "ddp"])
def test_three_steps(wrap):
    run_ranks(4, _same_as_one_process, wrap)


def _save(rank, world, folder):
    mesh = mesh_of((world,), ("z",))
    model = lc.sharding.shard(network(), mesh, DIMS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimiser, range(2), mesh, DIMS)
    state, optimiser_state = get_state_dict(model, optimiser)
    dcp.save({"model": state, "optimiser": optimiser_state}, checkpoint_id=folder)


def _resume(rank, world, folder):
    """What four ranks saved is on these ranks bit for bit, and the next step is that of one process."""
    mesh = mesh_of((world,), ("z",))
    one = network()
    optimiser_of_one = torch.optim.AdamW(one.parameters(), lr=1e-2)
    train(one, optimiser_of_one, range(2))
    model = lc.sharding.shard(network(seed=1), mesh, DIMS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state, optimiser_state = get_state_dict(model, optimiser)
    dcp.load({"model": state, "optimiser": optimiser_state}, checkpoint_id=folder)
    set_state_dict(model, optimiser, model_state_dict=state, optim_state_dict=optimiser_state)
    kept = torch.load(f"{folder}/whole.pt")
    for name, p in model.named_parameters():
        assert error_of(whole(p), kept[name]) < 1e-15, name
    train(one, optimiser_of_one, range(2, 3))
    train(model, optimiser, range(2, 3), mesh, DIMS)
    for name, p in one.named_parameters():
        assert error_of(whole(dict(model.named_parameters())[name]), p) < 1e-12, name


def _save_whole(rank, world, folder):
    _save(rank, world, folder)
    mesh = mesh_of((world,), ("z",))
    model = lc.sharding.shard(network(), mesh, DIMS)
    state, _ = get_state_dict(model, [])
    dcp.load({"model": state}, checkpoint_id=folder)
    kept = {name: whole(t) for name, t in state.items()}
    if rank == 0:
        torch.save(kept, f"{folder}/whole.pt")


def test_a_checkpoint_of_four_ranks_on_others(tmp_path):
    run_ranks(4, _save_whole, str(tmp_path))
    for world in (1, 2, 3, 4):
        run_ranks(world, _resume, str(tmp_path))


class Counted(TorchDispatchMode):
    """Bytes given to collectives, by their names."""

    def __init__(self):
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("_c10d_functional", "c10d") and not any(n in str(func) for n in ("wait", "_wrap")):
            values = [a for a in args if isinstance(a, torch.Tensor)]
            name = func.name().split("::")[1]
            self.bytes[name] = self.bytes.get(name, 0) + sum(t.numel() * t.element_size() for t in values)
        return func(*args, **(kwargs or {}))


def _bytes(rank, world):
    from torch.distributed.tensor.debug import CommDebugMode

    for sizes, names in (((4,), ("z",)), ((2, 2), ("z", "y"))):
        mesh, dims = mesh_of(sizes, names), {2 + a: name for a, name in enumerate(names)}
        for mode in ("zeros", "circular"):
            counts = []
            for n in (16, 32):
                model = nn.Sequential(
                    lc.LConv3d(2, 3, accuracy=4, padding_mode=mode), lc.LConv3d(3, 2, padding_mode=mode)
                ).double()
                for p in model.parameters():
                    dist.broadcast(p.data, 0)
                model = lc.sharding.shard(model, mesh, dims, check=False)
                spatial = (n if sizes == (4,) else 16, 12, 6)
                x = torch.ones(1, 2, *spatial).double()
                part = lc.sharding.local_part(x, mesh, dims).requires_grad_()
                model(part)  # the first call agrees on shapes
                with Counted() as counted, CommDebugMode() as debug:
                    model(part).sum().backward()
                sent = 0
                place = [mesh.get_local_rank(name) for name in names]
                for channels_in, _channels_out, h in ((2, 3, 2), (3, 2, 1)):
                    size = list(part.shape[2:])
                    for a, ranks in enumerate(sizes):
                        first, last = place[a] == 0, place[a] == ranks - 1
                        sides = 2 if mode == "circular" else 2 - first - last
                        rest = size[0] * size[1] * size[2] // size[a]
                        sent += 2 * channels_in * rest * h * sides * 8  # forward, and as much backward
                        size[a] += 2 * h if mode == "circular" else h * sides
                assert counted.bytes["all_to_all_single"] == sent, (sizes, mode, n, counted.bytes, sent)
                weights = sum(p.numel() for p in model.parameters()) + sum(
                    layer.generators.coefficients().numel() * 0 for layer in model
                )
                assert counted.bytes["all_reduce"] == weights * 8 * len(sizes)
                assert set(counted.bytes) == {"all_to_all_single", "all_reduce"}, (
                    counted.bytes
                )  # no gathers of any kind
                calls = {str(k): v for k, v in debug.get_comm_counts().items()}
                assert sum(v for k, v in calls.items() if "all_to_all" in k) == 4 * len(sizes)
                assert not any("gather" in k and v for k, v in calls.items())
                counts.append(dict(counted.bytes))
            if sizes == (4,):
                assert counts[0] == counts[1]  # twice the extent of the sharded axis, the same bytes


def test_bytes_are_the_surface():
    run_ranks(4, _bytes)


def _memory(rank, world):
    mesh = mesh_of((world,), ("z",))
    torch.manual_seed(0)
    blocks = []
    for _ in range(3):
        blocks += [
            lc.LConv3d(8, 8),
            nn.GroupNorm(2, 8),
            nn.ReLU(inplace=True),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.ReLU(),
        ]
    model = nn.Sequential(*blocks)
    x = torch.randn(1, 8, 64, 24, 24)
    held = resident(model, x)
    halo = 6 * 2 * 2 * 8 * 24 * 24 * 4  # six layers, two sides, sent and received
    lc.sharding.shard(model, mesh, DIMS)
    part = lc.sharding.local_part(x, mesh, DIMS)
    model(part)
    mine = resident(model, part)
    assert mine <= 1.05 * held / world + halo, (mine, held / world, halo)


def resident(model, x) -> int:
    """Bytes that a forward pass leaves allocated for the backward pass."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = model(x)
    total = sum(e.self_cpu_memory_usage for e in record.key_averages())
    del y
    return total


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_held_for_the_backward_pass(world):
    run_ranks(world, _memory)


def _checkpointed(rank, world):
    from torch.utils.checkpoint import checkpoint

    mesh = mesh_of((world,), ("z",))

    class Net(nn.Sequential):
        def forward(self, x):
            return checkpoint(self[1], self[0](x), use_reentrant=False) if self.recompute else super().forward(x)

    for recompute in (False, True):
        torch.manual_seed(0)
        inner = nn.Sequential(
            lc.LConv2d(3, 4), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Linear(8, 5)
        )
        model = Net(nn.Conv2d(3, 3, 3, padding=1), inner).double()
        model.recompute = recompute
        compare(model, torch.randn(2, 3, 11, 8).double(), mesh, DIMS, what=recompute)


def test_activation_checkpointing():
    run_ranks(2, _checkpointed)


def _compiled(rank, world, backend, unet):
    import torch._inductor.config

    torch._inductor.config.fx_graph_cache = False
    mesh = mesh_of((world,), ("z",))
    torch.manual_seed(0)
    small = [lc.LConv2d(2, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)]
    model = lc.nets.LUNet(2, 2, widths=(4, 6), checkpoint=True) if unet else nn.Sequential(*small)
    x = torch.randn(1, 2, 12, 10).double()
    call = lambda m, t: torch.compile(m, fullgraph=True, backend=backend)(t)  # noqa: E731
    compare(model.double(), x, mesh, DIMS, 1e-13, call=call)


@pytest.mark.parametrize("unet", [False, pytest.param(True, marks=pytest.mark.full)])
def test_compiled(unet):
    run_ranks(2, _compiled, "aot_eager", unet, seconds=120)


@pytest.mark.full
def test_compiled_by_inductor():
    run_ranks(2, _compiled, "inductor", False, seconds=300)


def test_importing_the_library_imports_no_distribution():
    import subprocess
    import sys

    code = "import sys, lconv_fast; assert 'lconv_fast.sharding' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
