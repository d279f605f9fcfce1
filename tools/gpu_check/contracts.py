"""What PyTorch asks of operators, on a GPU: opcheck, gradcheck, compilation, graphs, streams, autocast."""

from __future__ import annotations

from typing import Any

import torch

import lconv_fast as lc
from lconv_fast import form
from lconv_fast.ops.geometry import Geometry


def case(dtype=torch.float64, size=(5, 6)):
    generators = lc.AffineGenerators.named("se", 2, learnable=True).to("cuda", dtype)
    v = generators.coefficients().detach().requires_grad_()
    x = torch.randn(2, 3, *size, device="cuda", dtype=dtype, requires_grad=True)
    w = torch.randn(4, 4, 3, device="cuda", dtype=dtype, requires_grad=True)
    return generators, v, x, w, Geometry.of(generators.stencil(), size, [1, 1], 1)


def opcheck():
    _, v, x, w, geometry = case()
    u = torch.randn(2, 4, 5, 6, device="cuda", dtype=torch.float64, requires_grad=True)
    ops = torch.ops.lconv_fast
    torch.library.opcheck(ops.apply, (x, w, v, None, *geometry, True, False))
    torch.library.opcheck(ops.gram, (x, u, v, *geometry, True))
    torch.library.opcheck(ops.correlate, (x, w, u, *geometry))
    torch.library.opcheck(ops.backward, (u, x, w, v, *geometry, True))
    return {"right": True}


def gradcheck():
    generators, v, x, w, _ = case()

    def layer(v, x, w):
        return form.lconv(v, x, w, None, generators.stencil(), (1, 1), 1)

    first = torch.autograd.gradcheck(layer, (v, x, w), fast_mode=True, nondet_tol=0.0)
    return {"right": first and torch.autograd.gradgradcheck(layer, (v, x, w), fast_mode=True)}


def compiled():
    layer = lc.LConv2d(32, 32, "se").cuda().bfloat16()
    x = torch.randn(2, 32, 64, 64, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    return {"right": torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))}


def learner(basis, dtype):
    """A layer that learns all it has, and its input; in bfloat16 for the marching kernels."""
    layer = lc.LConv2d(32, 32, basis, learnable=True).cuda().to(dtype)
    layer.generators.float()
    x = torch.randn(2, 32, 64, 64, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    return layer, x.requires_grad_()


def graph(basis="se", dtype=torch.float32):
    layer, x = learner(basis, dtype)

    def step():
        y = layer(x)
        return (y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters())))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step()
    captured.replay()
    first = [t.clone() for t in results]
    for _ in range(100):
        captured.replay()
        if not all(torch.equal(a, b) for a, b in zip(first, results, strict=True)):
            return {"right": False}
    return {"right": all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))}


def graph_of_the_marching_kernels():
    return {"right": graph("se", torch.bfloat16)["right"] and graph("affine", torch.bfloat16)["right"]}


def stream():
    layer, x = lc.LConv2d(32, 32, "se").cuda(), torch.randn(8, 32, 256, 256, device="cuda")
    expected, side = layer(x), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = layer(x)
    side.synchronize()
    return {"right": torch.equal(found, expected)}


def second_device():
    if torch.cuda.device_count() < 2:
        return {"skipped": "one device"}
    layer, x = lc.LConv2d(32, 32, "se").cuda(1), torch.randn(2, 32, 64, 64, device="cuda:1")
    return {"right": torch.equal(layer(x).cpu(), layer.cuda(0)(x.cuda(0)).cpu())}


def autocast():
    layer, x = lc.LConv2d(32, 32, "se").cuda(), torch.randn(2, 32, 64, 64, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(x)
    return {"right": y.dtype == torch.bfloat16 and bool(((y - layer(x)).norm() / y.float().norm()) < 1e-2)}


def no_synchronisation():
    for basis, dtype in (("affine", torch.float32), ("se", torch.bfloat16), ("affine", torch.bfloat16)):
        layer, x = learner(basis, dtype)
        layer(x).sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            layer(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"right": True}


def bad_input():
    layer, x = lc.LConv2d(32, 32, "se").cuda(), torch.randn(2, 32, 8, 8)
    try:
        layer(x)
    except TypeError as error:
        y = layer(x.cuda())
        return {"right": "device" in str(error) and bool(y.isfinite().all())}
    return {"right": False}


CONTRACTS = {
    body.__name__: body
    for body in (
        opcheck, gradcheck, compiled, graph, graph_of_the_marching_kernels, stream, second_device, autocast,
        no_synchronisation, bad_input,
    )
}  # fmt: skip


def run(name: str) -> dict[str, Any]:
    return CONTRACTS[name]()
