"""Running statistics of norms in training mode, from the sums that the passes gathered."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lconv_fast.streaming.numbers import Numbers


def update_running(numbers: Numbers) -> None:
    """running = (1 - momentum) running + momentum batch, with the unbiased variance; the mean over samples where the
    statistics are each sample's own. In the order of the model, as a forward pass of one piece does it."""
    graph = numbers.graph
    for op, (mean, *rest) in numbers.results.items():
        if op.operator not in ("aten.batch_norm", "aten.instance_norm") or op["running_mean"] is None:
            continue
        name = str(graph.constants[op["running_mean"]])
        owner: Any = graph.model.get_submodule(name.rpartition(".")[0])
        momentum = op["momentum"]
        if isinstance(owner, nn.modules.batchnorm._NormBase):
            counts = op.operator == "aten.batch_norm" and owner.num_batches_tracked is not None
            if counts:
                owner.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = owner.momentum
            if momentum is None:
                momentum = 1.0 / float(owner.num_batches_tracked) if counts else 0.0  # type: ignore[arg-type]
        count = numbers.counts[op]
        var = rest[0] * (count / max(count - 1, 1))
        with torch.no_grad():
            for key, value in (("running_mean", mean), ("running_var", var)):
                buffer = numbers.state[str(graph.constants[op[key]])]
                buffer.copy_((1 - momentum) * buffer.double() + momentum * value.mean(0))
