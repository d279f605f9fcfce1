"""MNIST-1D (Greydanus and Kobak, 2020; package mnist1d, which generates it): 10 classes of curves on 40 points."""

from __future__ import annotations

from typing import Any

import torch
from common import CONTENDERS, accuracy, cross_entropy, exchange, experiment, is_quick, predict, train
from mnist1d.data import get_dataset_args, make_dataset

from lconv_fast import nets
from lconv_fast.demo.volume import kept_bytes

STEPS, BATCH = (6, 100) if is_quick() else (500, 100)
VALIDATION = 800


def trial(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    arguments = get_dataset_args()
    arguments.seed = 42 + seed
    if is_quick():
        arguments.num_samples = 1000
    data = make_dataset(arguments)
    f, classes = torch.from_numpy(data["x"]).float()[:, None], torch.from_numpy(data["y"]).long()
    count = len(f) - (200 if is_quick() else VALIDATION)
    torch.manual_seed(seed)
    model = exchange(nets.LResNet(1, 10, ndim=1, widths=(16, 32, 64), norm="batch"), CONTENDERS[contender])
    seconds = train(model, f[:count], classes[:count], cross_entropy, rate=rate, steps=STEPS, batch=BATCH, seed=seed)
    result = {"validation": accuracy(predict(model, f[count:], 200), classes[count:])}
    if not tuning:
        test, truth = torch.from_numpy(data["x_test"]).float()[:, None], torch.from_numpy(data["y_test"]).long()
        result["test"] = accuracy(predict(model, test, 200), truth)
    parameters = sum(p.numel() for p in model.parameters())
    return result | {
        "parameters": parameters,
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, f[:BATCH]) / 2**20,
    }


if __name__ == "__main__":
    experiment("mnist1d", __doc__ or "", list(CONTENDERS), trial, rates=(1e-2, 3e-2), tuning_seeds=(100,))
