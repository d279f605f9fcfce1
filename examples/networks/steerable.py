"""A network of steerable convolutions (escnn) on digits: three 5 x 5 layers of the regular representation of C_8, batch
norm, ReLU, the largest value over the group, the mean over the image and a linear map.

escnn 1.0.11 needs lie_learn, whose wheels (lie-learn-escience 0.0.5) are of numpy 1: in a folder of their own with it,

    pip install --no-deps --target DIR lie-learn-escience numpy==1.26.4
    PYTHONPATH=DIR:$PYTHONPATH python digits.py --only "escnn, C_8"
"""

from __future__ import annotations

from escnn import gspaces
from escnn import nn as steerable
from torch import Tensor, nn

from lconv_fast.demo.turned import CLASSES

ROTATIONS = 8


class Steerable(nn.Module):
    def __init__(self, fields: int) -> None:
        super().__init__()
        act = gspaces.rot2dOnR2(ROTATIONS)
        self.start = steerable.FieldType(act, [act.trivial_repr])
        hidden = steerable.FieldType(act, fields * [act.regular_repr])
        layers, kind = [], self.start
        for _ in range(3):
            layers += [
                steerable.R2Conv(kind, hidden, kernel_size=5, padding=2, bias=False),
                steerable.InnerBatchNorm(hidden),
                steerable.ReLU(hidden, inplace=True),
            ]
            kind = hidden
        self.layers = steerable.SequentialModule(*layers, steerable.GroupPooling(hidden))
        self.head = nn.Linear(fields, CLASSES)

    def forward(self, f: Tensor) -> Tensor:
        return self.head(self.layers(steerable.GeometricTensor(f, self.start)).tensor.mean((2, 3)))
