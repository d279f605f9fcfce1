"""The memory and the time of a streamed step while the volume grows, under a hard limit of the address space.

    python tests/scale/working_memory.py SIZE FOLDER [TILE [LIMIT_GIB]]

makes a memory-mapped volume of SIZE^3 in FOLDER, and prints as JSON the peak of resident memory (all of it, and what
belongs to no file), and the seconds of one forward_backward. SIZE of "piece:128" is plain PyTorch in one piece.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lconv_fast as lc


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.lconv, self.norm = lc.LConv3d(channels, channels), nn.InstanceNorm3d(channels, affine=True)

    def forward(self, f):
        return f + torch.relu(self.norm(self.lconv(f)))


def network():
    """At 512^3 in float32 its activations, 50 channels and more, need 25 GiB."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 1), *(Residual(4) for _ in range(3)), nn.Conv3d(4, 1, 1))


def volume(path, size, seed):
    """Made a slice at a time."""
    if not path.exists():
        array = np.lib.format.open_memmap(path, "w+", np.float32, (size,) * 3)
        random = np.random.default_rng(seed)
        for z in range(size):
            array[z] = random.standard_normal((size, size), dtype=np.float32)
        array.flush()
    return np.load(path, mmap_mode="r")


def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


class Watch:
    """The largest resident memory that belongs to no file, sampled."""

    def __enter__(self):
        import threading

        self.peak, self.stop = 0, threading.Event()

        def look():
            while not self.stop.wait(0.02):
                self.peak = max(self.peak, status("RssAnon"))

        self.thread = threading.Thread(target=look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def main(size, folder, tile=64, limit=2.0):
    folder = Path(folder)
    whole = size.startswith("piece:")
    size = int(size.removeprefix("piece:"))
    x, t = volume(folder / f"x{size}.npy", size, 0), volume(folder / f"t{size}.npy", size, 1)
    model = network()
    if not whole:
        resource.setrlimit(resource.RLIMIT_AS, (int(float(limit) * 2**30),) * 2)
    with Watch() as watch:
        start, cpu = time.perf_counter(), time.process_time()
        if whole:
            loss = nn.MSELoss()(
                model(torch.from_numpy(np.array(x))[None, None]), torch.from_numpy(np.array(t))[None, None]
            )
            loss.backward()
        else:
            streamed = lc.stream(model, (int(tile),) * 3, folder, progress=False)
            loss = streamed.forward_backward(x, t, nn.MSELoss())
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    result = {
        "size": size,
        "one piece": whole,
        "tile": None if whole else int(tile),
        "loss": loss.item(),
        "peak resident MiB": status("VmHWM") / 2**20,
        "peak anonymous MiB": watch.peak / 2**20,
        "seconds": seconds,
        "CPU seconds": cpu,
        "CPU ns per voxel": cpu / size**3 * 1e9,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    main(*sys.argv[1:])
