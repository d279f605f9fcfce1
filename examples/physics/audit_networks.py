"""Which layer breaks the rotations: the audit of a CNN and of an L-conv net, trained on one small task.

Task: f + (d f / d theta)^2 of smooth random pictures f, which turns with the picture.
Run: python examples/physics/audit_networks.py [folder]. Needs matplotlib. Writes audit_cnn.png and audit_lconv.png.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import lconv_fast as lc

SIZE = 48


def pictures(count, seed):
    random = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    f = torch.zeros(count, 1, SIZE, SIZE)
    for n in range(count):
        for _ in range(6):
            cy, cx, weight = ((torch.rand(3, generator=random) - 0.5) * torch.tensor([20.0, 20.0, 2.0])).tolist()
            f[n, 0] += weight * torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 4.5**2))
    return f


def target(f):
    return f + 4 * lc.AffineGenerators.named("rotation", accuracy=4)(f)[:, 0].square()


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 3, padding=1)
    )


def lconv_net():
    """Layers of I and the rotation about the centre commute with it."""
    rotation = {"generators": "rotation", "accuracy": 4, "padding_mode": "replicate"}
    return nn.Sequential(lc.LConv2d(1, 16, **rotation), nn.Tanh(), lc.LConv2d(16, 1, **rotation))


def train(model, steps=200):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = pictures(32, 0)
    y = target(x)
    for step in range(steps):
        batch = torch.randint(32, (8,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.mse_loss(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item() / y.square().mean().item()


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "physics_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    turn = lc.AffineGenerators.named("rotation", accuracy=8, padding_mode="replicate", coordinate_scale=1.0)
    x = pictures(4, 1)
    for name, model in (("cnn", cnn()), ("lconv", lconv_net())):
        loss = train(model)
        found = lc.physics.audit(model, x, turn)
        error = lc.physics.equivariance_error(model, x, turn, 0.3)
        print(f"{name}: loss {loss:.3f} of the target's square; turned by 0.3: error {error.item():.3f}")
        print(found)
        print("largest error inside:", found.worst().path or "(model)")
        print("wrote", found.picture(folder / f"audit_{name}.png"))


if __name__ == "__main__":
    main()
