"""Bad input is an error on every rank, before anything hangs."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from ranks import SERVER, mesh_of, run_ranks, start
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lconv_fast as lc

DIMS = {2: "z"}


class Calls(nn.Module):
    def __init__(self, function, *layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def attention(x):
    points = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(points, points, points)


def recomputed(layer, x):
    return checkpoint(lambda t: F.conv2d(t, layer.weight, padding=1), x, use_reentrant=False)


class Shifted(torch.autograd.Function):
    """Acts at each point alone forward, and not backward."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return g.roll(1, 2)


def on_mean(x, layer):
    return layer(x.mean((2, 3), keepdim=True).expand(-1, -1, 12, 8))


def sampled():
    return lc.LConv2d(4, 4, lc.FieldGenerators(torch.ones(1, 2, 12, 8)))


# (name, model, what the error says), on (1, 4, 12, 8)
MODELS = [
    ("attention layer", lambda: nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 1)), r"1 \(MultiheadAttention\)"),
    ("attention", lambda: nn.Sequential(nn.Identity(), Calls(attention)), r"1 \(Calls\)"),
    ("spectral", lambda: lc.LConv2d(4, 4, "affine", accuracy="spectral", padding_mode="circular"), "generators"),
    ("dense", lambda: nn.Sequential(lc.LConv2d(4, 4, lc.DenseGenerators(torch.randn(1, 96, 96)))), "0.generators"),
    ("transposed", lambda: lc.LConv2d(4, 4, lc.AffineGenerators.named("gl").transpose()), "transposed"),
    ("fft", lambda: Calls(lambda x: torch.fft.rfft(x, dim=2).real), "fft_rfft"),
    ("cumsum", lambda: Calls(lambda x: x.cumsum(2)), "cumsum"),
    ("global max", lambda: nn.AdaptiveMaxPool2d(1), "adaptive_max_pool2d"),
    ("pool to a grid", lambda: nn.AdaptiveAvgPool2d(4), "adaptive_avg_pool2d"),
    ("softmax", lambda: Calls(lambda x: x.softmax(2)), "softmax"),
    ("layer norm", lambda: nn.LayerNorm([4, 12, 8]), "layer_norm"),
    ("linear", lambda: Calls(lambda x, layer: layer(x.transpose(2, 3)), nn.Linear(12, 3)), "linear"),
    ("size", lambda: nn.Upsample(size=(13, 8)), "integer factors"),
    ("corners", lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners"),
    ("positions", lambda: Calls(lambda x: x + torch.arange(x.shape[2])[:, None]), "whole on every rank"),
    ("values", lambda: Calls(lambda x: x * 2 if x.sum() > 0 else x), r"meta|values|Bool|bool"),
    ("extent", lambda: Calls(lambda x: x / x.shape[2]), "depends on the extents"),
    ("matmul", lambda: Calls(lambda x: x @ x.transpose(2, 3)), "product of matrices"),
    ("checkpointed function", lambda: Calls(lambda x, layer: recomputed(layer, x), nn.Conv2d(4, 4, 3)), "a function"),
    ("function of one's own", lambda: nn.Sequential(Calls(Shifted.apply)), r"0 \(Calls\): Shifted"),
    ("field on whole input", lambda: Calls(on_mean, sampled()), "input is whole on every rank"),
    ("reshape", lambda: Calls(lambda x: x.reshape(1, 4, 8, 12)), "sharded dimensions"),
    ("thin", lambda: lc.LConv2d(4, 4, "translation", accuracy=8), "halo"),
    ("thin mirror", lambda: lc.LConv2d(4, 4, accuracy=6, padding_mode="reflect"), "reflect padding by 3 points"),
    ("thin level", lambda: nn.Sequential(*[nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)] * 3), "none for some rank"),
]


def expect(error, message, call) -> None:
    """The error comes on this rank, and soon."""
    begin = time.time()
    with pytest.raises(error, match=message):
        call()
    assert time.time() - begin < 10


def _models(rank, world):
    mesh = mesh_of((world,), ("z",))
    for name, make, message in MODELS:
        torch.manual_seed(0)

        def call(make=make):
            model = lc.sharding.shard(make(), mesh, DIMS)
            model(lc.sharding.local_part(torch.randn(1, 4, 12, 8), mesh, DIMS))

        try:
            expect((TypeError, ValueError, RuntimeError), message, call)
        except BaseException as error:
            raise AssertionError(f"{name}: {error}") from error
        dist.barrier()


def test_models_that_cannot_be_sharded():
    run_ranks(4, _models)


def _arguments(rank, world):
    mesh, names = mesh_of((world,), ("z",)), ("z",)
    x = torch.randn(1, 2, 9, 9)
    conv = lambda: nn.Conv2d(2, 2, 3, padding=1)  # noqa: E731
    fielded = lambda: (torch.manual_seed(0), lc.LConv2d(2, 2, lc.FieldGenerators(torch.ones(1, 2, 9, 9))))[1]  # noqa: E731
    shard, part = lc.sharding.shard, lc.sharding.local_part
    expect(ValueError, r"splits into \(3, 3, 3, 0\)", lambda: part(x, mesh, DIMS))
    expect(ValueError, r"3, 3, 3, 0", lambda: shard(fielded(), mesh, DIMS))
    expect(TypeError, "DeviceMesh", lambda: shard(conv(), "z", DIMS))
    expect(TypeError, "dims", lambda: shard(conv(), mesh, ["z"]))
    expect(ValueError, "mesh axes among", lambda: shard(conv(), mesh, {2: "y"}))
    expect(ValueError, "first spatial dimension", lambda: shard(conv(), mesh, {1: "z"}))
    expect(TypeError, "Module", lambda: shard(None, mesh, DIMS))
    expect(ValueError, "dims below", lambda: part(x, mesh, {5: "z"}))
    expect(TypeError, "local_part", lambda: part([1, 2], mesh, DIMS))
    torch.manual_seed(0)
    model = conv()
    expect(ValueError, "same dims|same", lambda: shard(model, mesh, {2: "z"} if rank else {3: "z"}))
    torch.manual_seed(rank)
    expect(ValueError, "'weight' on rank 1", lambda: shard(conv(), mesh, DIMS))
    torch.manual_seed(0)
    expect(ValueError, "names or shapes", lambda: shard(conv() if rank else nn.Conv2d(2, 3, 3), mesh, DIMS))
    torch.manual_seed(0)
    model = shard(conv(), mesh, DIMS)
    expect(ValueError, "already", lambda: shard(model, mesh, DIMS))
    good = torch.randn(1, 2, 3, 9)
    model(good)
    # A volume that changes its shape, type, or need of gradients on one rank, after steps that were right.
    expect(ValueError, "agree in dimension 3", lambda: model(torch.randn(1, 2, 3, 8 if rank == 1 else 9)))
    expect(ValueError, "agree in dimension 0", lambda: model(torch.randn(2 if rank == 2 else 1, 2, 3, 9)))
    expect(ValueError, "one dtype", lambda: model(good.double() if rank == 1 else good))
    expect(ValueError, "requires_grad", lambda: model(good.clone().requires_grad_(rank == 3)))
    expect(ValueError, "rank 1 gives", lambda: (model.train(rank != 1), model(good)))
    model.train()
    bad = good.clone()
    if rank == 2:
        bad[0, 0, 1, 1] = float("nan")
    expect(FloatingPointError, "rank 2", lambda: model(bad))
    model(good).sum().backward()  # and all is as before
    assert names == ("z",)


def test_arguments():
    run_ranks(4, _arguments)


def _killed(rank, world, folder):
    mesh = mesh_of((world,), ("z",))
    torch.manual_seed(0)
    model = lc.sharding.shard(nn.Conv2d(2, 2, 3, padding=1), mesh, DIMS)
    part = lc.sharding.local_part(torch.randn(1, 2, 8, 8), mesh, DIMS)
    model(part).sum().backward()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.time()
    try:
        for _ in range(3):
            model(part).sum().backward()
    except Exception as error:
        with open(f"{folder}/{rank}", "w") as file:
            file.write(f"{time.time() - begin} {type(error).__name__}")
        os._exit(0)  # without the barrier that others would wait at
    raise AssertionError("no error")


def test_a_rank_that_is_killed(tmp_path):
    processes = [
        SERVER.Process(target=start, args=(rank, 3, str(tmp_path), 10, _killed, (str(tmp_path),))) for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL, 0]
    for rank in (0, 2):
        assert float((tmp_path / str(rank)).read_text().split()[0]) < 12
