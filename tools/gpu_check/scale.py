"""Tensors past 2^31 elements, compared in windows; the largest examples, trained on one card."""

from __future__ import annotations

import time
from typing import Any

import torch
from correct import TOLERANCE

import lconv_fast as lc
from lconv_fast.ops.geometry import Geometry


def huge(size, channels, outs, dtype):
    generators = lc.AffineGenerators.named("translation", len(size))
    x = torch.empty(1, *size, channels, device="cuda", dtype=dtype)
    for part in x.flatten().split(1 << 28):
        part.normal_()
    x = x.movedim(-1, 1)
    w = torch.randn(len(size) + 1, outs, channels, device="cuda").to(dtype) / channels**0.5
    v = generators.coefficients()
    geometry = Geometry.of(generators.stencil(), size, [1] * len(size), 1)
    y = torch.ops.lconv_fast.apply(x, w, v.cuda(), None, *geometry, True, False)
    back = torch.ops.lconv_fast.apply(y, w, v.cuda(), None, *geometry, True, True)
    both = torch.ops.lconv_fast.backward(y, x, w, v.cuda(), *geometry, True)
    gram = torch.ops.lconv_fast.gram(x, y, v.cuda(), *geometry, True)
    errors = [float((both[1].double() - gram.double()).norm() / gram.double().norm())]
    errors.append(float((both[0] - back).norm() / back.norm()))
    del both
    for where in (0.0, 0.5, 1.0):
        starts = [int(where * (n - 12)) for n in size]
        box = tuple(slice(s, s + 12) for s in starts)
        inside = tuple(slice(0 if s == 0 else 1, 12 if s + 12 == n else 11) for s, n in zip(starts, size, strict=True))
        small = geometry._replace(spatial=[12] * len(size), origin=starts, full=list(size))
        for given, result, transposed in ((x, y, False), (y, back, True)):
            window = given[(slice(None), slice(None), *box)].cpu().double()
            truth = torch.ops.lconv_fast.apply(window, w.cpu().double(), v.double(), None, *small, True, transposed)
            index = (slice(None), slice(None), *inside)
            found = result[(slice(None), slice(None), *box)].cpu().double()
            errors.append(float((found[index] - truth[index]).norm() / truth[index].norm()))
    return {"elements": x.numel(), "error": max(errors), "right": max(errors) < TOLERANCE[dtype]}


def train(layer, size, batch, channels):
    l_conv = layer(channels, channels, "rotation", bias=False).cuda().bfloat16()
    l_conv.generators.float()
    x = torch.empty(batch, *size, channels, device="cuda", dtype=torch.bfloat16).movedim(-1, 1).requires_grad_()
    with torch.no_grad():
        for part in x.movedim(1, -1).flatten().split(1 << 28):
            part.normal_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    data = x.numel() * 2
    start = time.perf_counter()
    y = l_conv(x)
    held = torch.cuda.memory_allocated() - 2 * data
    gradients = torch.autograd.grad(y, (x, l_conv.weight), y.detach())
    torch.cuda.synchronize()
    return {
        "seconds, first call": time.perf_counter() - start,
        "data_bytes": data,
        "held_beyond_input_and_output": held,
        "peak_over_data": torch.cuda.max_memory_allocated() / data,
        "right": all(bool(g.isfinite().all()) for g in (gradients[1], gradients[0][..., -1])),
    }


CASES = {
    "2D bfloat16": (huge, (8256, 8256), 32, 32, torch.bfloat16),
    "2D bfloat16, few channels": (huge, (32768, 24576), 3, 8, torch.bfloat16),
    "training 512^3 x 32": (train, lc.LConv3d, (512, 512, 512), 1, 32),
    "training 8 x 64 x 4096 x 4096": (train, lc.LConv2d, (4096, 4096), 8, 64),
}


def run(name: str) -> dict[str, Any]:
    body, *arguments = CASES[name]
    return body(*arguments)
