"""Time of a training step on digits (batch 64, 16 x 16): the L-conv network about the centre beside escnn's, in turn.

escnn's (steerable.py, which says how to install it) has as many fields as make the number of parameters the nearest.
"""

from __future__ import annotations

import time

import torch
from common import RESULTS, Store, is_quick
from digits import make_model
from steerable import Steerable
from torch import nn
from torch.nn import functional as F

from lconv_fast.demo.symmetry import SIDE
from lconv_fast.demo.turned import BATCH, CLASSES
from lconv_fast.demo.volume import kept_bytes

LCONV = "rotation + laplacian"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    torch.set_num_threads(1)
    lconv = make_model(LCONV)
    others = {fields: Steerable(fields) for fields in range(3, 9)}
    nearest = min(others, key=lambda fields: abs(parameters(others[fields]) - parameters(lconv)))
    models = {LCONV: lconv, "conv": make_model("conv"), f"escnn, C_8, {nearest} fields": others[nearest]}
    f, classes = torch.randn(BATCH, 1, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(3 if is_quick() else 9):
        for name, model in models.items():
            start = time.process_time()
            F.cross_entropy(model(f), classes).backward()
            seconds[name].append(time.process_time() - start)
    store = Store(RESULTS / f"escnn_step{'-quick' if is_quick() else ''}.json", __doc__ or "")
    for name, model in models.items():
        run = {
            "contender": name,
            "parameters": parameters(model),
            "step_ms": 1e3 * min(seconds[name][1:]),
            "of_lconv": min(seconds[name][1:]) / min(seconds[LCONV][1:]),
            "kept_mib": kept_bytes(model, f) / 2**20,
        }
        store.add(run)
        print(run)


if __name__ == "__main__":
    main()
