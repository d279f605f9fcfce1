"""`lc.stream`: a model on volumes larger than memory, with the gradients of the whole volume."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import boolean, check_module, extents, is_integer
from lconv_fast.regions.graph import Graph, trace
from lconv_fast.regions.plan import float_type, plan_of
from lconv_fast.streaming import loss as losses
from lconv_fast.streaming.arrays import Reader, Writer, dtype_of
from lconv_fast.streaming.budget import choose_tile, costs, disk_bytes, memory_bytes, tile_memory
from lconv_fast.streaming.explain import StreamExplanation
from lconv_fast.streaming.passes import Schedule, schedule
from lconv_fast.streaming.record import Record, fingerprint
from lconv_fast.streaming.run import Report, Run
from lconv_fast.streaming.running import update_running
from lconv_fast.streaming.store import check_space
from lconv_fast.streaming.sums import merged


def stream(
    model: nn.Module,
    tile: Sequence[int] | None = None,
    spill: str | Path | None = None,
    memory: int | str | None = None,
    *,
    progress: bool | None = None,
    order: int | None = None,
) -> Streamed:
    """Trains and predicts on volumes larger than memory, exactly: the gradients are those of the whole in one piece.

    An output region needs a slightly larger input region (`lc.regions`), so that the model is computed tile by tile
    with halos. It is cut at every sum over space (instance, group and batch norm, global means); these sums and their
    backward sums, dx += dmean / n + 2 (x - mean) dvar / n, run over all tiles in float64.

    Args:
        model: any model that torch.export traces and whose operators `lc.regions` knows; one input
            (N, C, *spatial), one output of the same kind. Its mode (train or eval) and weights are those of each call.
        tile: extents of a tile on the input, one for each axis of space, best multiples of the total stride.
        spill: folder for activations and cotangents at the cuts, on a fast disk; by default the system's temporary
            folder. The files have no names, and vanish with the process.
        memory: bytes or a text as "2 GiB": chooses the largest cubic tile that fits, where `tile` is not given. Counts
            tensors; the interpreter and PyTorch need about 0.3 GiB besides.
        progress: shows a bar; by default on terminals.
        order: a seed to visit the tiles in random order. No bit of the results depends on it.

    Raises:
        TypeError, ValueError: before anything is computed; models that are not local, or cannot be traced, by the
            operator and the path of its module.
    """
    check_module("model", model)
    if tile is None and memory is None:
        raise ValueError("stream: expected tile or memory, got neither")
    sizes = None if tile is None else extents("tile", tile, most=None)
    if not (spill is None or isinstance(spill, (str, os.PathLike))):
        raise TypeError(f"spill: expected a folder, got {spill!r}")
    progress = None if progress is None else boolean("progress", progress)
    if order is not None and not is_integer(order):
        raise TypeError(f"order: expected None or an integer, got {order!r}")
    folder = Path(tempfile.gettempdir() if spill is None else spill)
    if not folder.is_dir():
        raise FileNotFoundError(f"spill: expected a folder, got {folder}")
    with tempfile.TemporaryFile(dir=folder):
        pass  # an error now, where nothing can be written
    limit = None if memory is None else memory_bytes(memory)
    return Streamed(model, sizes, folder, limit, progress, order)


class Streamed:
    """A model that reads and writes its volumes tile by tile; made by `lc.stream`."""

    def __init__(
        self,
        model: nn.Module,
        tile: tuple[int, ...] | None,
        spill: Path,
        memory: int | None,
        progress: bool | None,
        order: int | None,
    ) -> None:
        self.model, self.tile, self.spill, self.memory = model, tile, spill, memory
        self.progress, self.order = progress, order
        self._plans: dict[Any, Schedule] = {}
        self._unfinished: dict[int, tuple[str, list[int]]] = {}

    # ---- what users call ----

    def forward_backward(
        self, volume: Any, target: Any, loss: Callable[..., Tensor], *, reduction: str | None = None
    ) -> Tensor:
        """The loss of the whole volume; adds its gradients to .grad of the parameters, as backward() does.

            loss(W) = mean or sum over voxels x of l(f_W(volume)(x), target(x))

        Running statistics of norms are updated once. A step that is interrupted or fails changes neither gradients nor
        statistics and leaves no files; it is simply called again.

        Args:
            volume: (N, C, *spatial), or without leading dimensions of size one: a tensor, numpy array or memmap, zarr
                array, or anything with shape, dtype and slices; of the model's dtype.
            target: what the loss takes, its last dimensions space; likewise.
            loss: (prediction, target) -> a number for each voxel, of that voxel alone. A module or functools.partial
                with reduction 'mean' or 'sum' is taken by its voxels and reduced so over the whole volume (weights
                and ignore_index of cross-entropy included).
            reduction: 'mean' or 'sum' over all numbers that loss returns; by default the loss's own, else 'mean'.

        Returns:
            The loss, a tensor of no dimensions in float64.
        """
        judge = losses.Loss(loss, reduction)
        plan, reader = self._prepare(volume, backward=True)
        graph = plan.graph
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError("forward_backward: expected a model with parameters that require gradients, got none")
        output, n, device = graph.output, graph.ndim, self._device()
        truth = _target(target, reader, output.shape, n)
        corner = tuple(min(4, size) for size in output.shape[-n:])
        sample = losses.example((*output.shape[:-n], *corner), output.dtype)
        few = truth.read([*((0, size) for size in truth.shape[:-n]), *((0, size) for size in corner)])
        convert = _target_type(judge, sample, few)
        leading = losses.probe_loss(judge, sample.to(device), convert(few).to(device), n)

        def wanted(index: int) -> dict[str, Tensor]:
            box = plan.passes[-1].tiles[index]
            return {"target": convert(truth.read([*((0, size) for size in truth.shape[:-n]), *box]))}

        def judged(_: int, prediction: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
            values = judge(prediction, there)
            if math.prod(values.shape) != math.prod(leading) * math.prod(prediction.shape[-n:]):
                raise ValueError(f"loss: expected a number for each voxel, got {tuple(values.shape)}")
            return values, torch.full_like(values, 1.0 / share)

        with self._run(plan, reader, backward=True) as run:
            share = 1.0
            if judge.reduction == "mean":
                share = math.prod(leading) * math.prod(output.shape[-n:])
                if judge.weights is not None:
                    share = _total(judge, wanted, len(plan.passes[-1].tiles), device)
            run.gather()
            total = run.differentiate(judged, wanted)
            run.numbers.finish()
            update_running(run.numbers)
        return total / share

    def predict(self, volume: Any, out: Any = None, transform: Any = None, *, resume: bool = False) -> Any:
        """transform(model(volume)), tile by tile; neither volume nor prediction is ever whole in memory.

        Norms in training mode use the statistics of this volume; running ones stay as they are.

        Args:
            volume: as in `forward_backward`.
            out: what to write to: a tensor, numpy memmap or zarr array of the shape of the result, perhaps without
                leading dimensions of size one. By default a new tensor.
            transform: of the prediction of a tile, voxel by voxel: lambda p: p.argmax(1), or 'argmax'.
            resume: goes on where an interrupted call with the same model, volume and out stopped: tiles that are
                written are not computed again (passes for norms over space are). What is written is recorded beside
                the file of `out` (.unfinished, removed at the end), or in this object where `out` has no file.

        Returns:
            out.
        """
        change, resume = losses.known_transform(transform), boolean("resume", resume)
        plan, reader = self._prepare(volume, backward=False)
        lead, dtype = self._result(plan, change)
        space = plan.graph.output.shape[-plan.graph.ndim :]
        if out is None:
            out = torch.empty((*_given(lead, reader), *space), dtype=dtype)
        writer = Writer(out, (*lead, *space), dtype)
        key = fingerprint(self.model, reader.shape, str(reader.dtype), plan.tile, lead)
        record = Record(out, key, self._unfinished)
        before = (record.done() if resume else None) or []
        record.start(before)
        boxes = plan.passes[-1].tiles

        def write(index: int, piece: Tensor) -> None:
            writer.write([*((0, size) for size in lead), *boxes[index]], piece)
            record.add(index)

        with self._run(plan, reader, backward=False) as run:
            if len(before) < len(boxes):
                run.gather()
                for index, piece in run.outputs(frozenset(before)):
                    changed = piece if change is None else change(piece)
                    run.transfer.write(write, index, changed)
                run.transfer.wait()
        record.finish()
        return out

    def result(self, volume: Any, transform: Any = None) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of what `predict` returns, for those who make `out`. Nothing is computed."""
        plan, reader = self._prepare(volume, backward=False)
        lead, dtype = self._result(plan, losses.known_transform(transform))
        return (*_given(lead, reader), *plan.graph.output.shape[-plan.graph.ndim :]), dtype

    def explain(self, volume: Any = None) -> StreamExplanation:
        """Prints what a step and a prediction would do: passes, bytes read and written, halo overhead, peak memory and
        disk, and which cuts are written or computed again, and why. Nothing is computed.

        volume: an array, or a shape (N, C, *spatial); by default four tiles along each axis.
        """
        given = getattr(volume, "shape", volume)
        shape = self._example_shape() if given is None else extents("volume", given)
        shape = (1,) * (self._dims() - len(shape)) + tuple(shape)
        plan = self._plan(shape, float_type(self.model), True)
        whole = plan_of(plan.graph)
        result = StreamExplanation(
            shape, plan.tile, whole.halo, tuple(plan.cuts), costs(plan, True), costs(plan, False)
        )
        print(result)
        return result

    # ---- before the work ----

    def _result(self, plan: Schedule, change: Any) -> tuple[tuple[int, ...], torch.dtype]:
        """Leading dimensions and dtype of the prediction of a few points, transformed."""
        output, n = plan.graph.output, plan.graph.ndim
        corner = tuple(min(4, size) for size in output.shape[-n:])
        sample = losses.example((*output.shape[:-n], *corner), output.dtype).to(self._device())
        result = sample if change is None else losses.probe_transform(change, sample, n)
        return tuple(result.shape[:-n]), result.dtype

    def _prepare(self, volume: Any, backward: bool) -> tuple[Schedule, Reader]:
        """Checks the volume; the passes over it."""
        dtype, expected = dtype_of("volume", volume), float_type(self.model)
        if dtype != expected:
            raise TypeError(f"volume: expected {expected} as the model, got {dtype}")
        dims = self._dims()
        if not dims - 2 <= len(volume.shape) <= dims:
            raise ValueError(
                f"volume: expected (N, C, *spatial) with {dims - 2} axes of space, got {tuple(volume.shape)}"
            )
        reader = Reader("volume", volume, dims)
        if 0 in reader.shape:
            raise ValueError(f"volume: expected at least one point on each axis, got {reader.given}")
        return self._plan(reader.shape, dtype, backward), reader

    def _plan(self, shape: tuple[int, ...], dtype: torch.dtype, backward: bool) -> Schedule:
        modes = tuple(m.training for m in self.model.modules())
        grads = tuple(p.requires_grad for p in self.model.parameters())
        key = (shape, dtype, modes, grads)
        if key not in self._plans:
            self._plans.clear()
            graph = trace(self.model, shape, dtype, len(shape) - 2, "stream")
            self._check(graph)
            tile = self.tile or choose_tile(graph, self.memory or 0, plan_of(graph).stride)
            self._plans[key] = schedule(graph, tile)
        return self._plans[key]

    def _check(self, graph: Graph) -> None:
        if len(graph.inputs) != 1:
            raise ValueError(f"stream: expected a model with one input, got {len(graph.inputs)}")
        order = [d for d in graph.output.dims if d is not None]
        if graph.output.dims and (graph.output.dims[-graph.ndim :] != tuple(order) or order != sorted(order)):
            raise ValueError("stream: expected an output (N, C, *spatial), its axes in the order of the input's")

    @property
    def ndim(self) -> int:
        """Axes of space."""
        return self._dims() - 2

    def _dims(self) -> int:
        if self.tile is not None:
            return len(self.tile) + 2
        for module in self.model.modules():
            n = getattr(module, "ndim", None)
            if isinstance(module, nn.modules.conv._ConvNd):
                return module.weight.dim()
            if isinstance(n, int) and n > 0:
                return n + 2
        for node in getattr(getattr(self.model, "graph", None), "nodes", ()):  # of a program that was exported
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
                return int(node.meta["val"].dim())
        raise ValueError("stream: the number of axes is not known of this model; give tile")

    def _example_shape(self) -> tuple[int, ...]:
        n = self._dims() - 2
        channels: Any = next((m.in_channels for m in self.model.modules() if hasattr(m, "in_channels")), 1)
        return (1, int(channels), *((256,) * n if self.tile is None else (4 * size for size in self.tile)))

    def _device(self) -> torch.device:
        return next((t.device for t in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))

    @contextmanager
    def _run(self, plan: Schedule, reader: Reader, backward: bool) -> Iterator[Run]:
        check_space(self.spill, disk_bytes(plan, backward))
        seed = int(torch.randint(2**31, ()).item()) if self.model.training else 0
        with (
            _bar(self.progress) as report,
            Run(
                plan,
                reader,
                self.spill,
                self._device(),
                backward=backward,
                seed=seed,
                order=self.order,
                memory=tile_memory(plan, backward),
                report=report,
            ) as run,
        ):
            yield run


def _given(lead: tuple[int, ...], volume: Reader) -> tuple[int, ...]:
    """The leading dimensions of a result, without those of size one that the volume came without."""
    missing = volume.missing
    while missing and lead[:1] == (1,):
        lead, missing = lead[1:], missing - 1
    return lead


def _target(target: Any, volume: Reader, output: tuple[int, ...], n: int) -> Reader:
    """The target, with a batch dimension where the volume came without one."""
    dtype, dims = dtype_of("target", target), len(target.shape)
    missing = 0
    if volume.missing or dims == n:
        classes = not dtype.is_floating_point and not (dims > n and target.shape[0] == 1)
        missing = (n + 1 if classes and dims == n else n + 2) - dims
        missing = 0 if not dtype.is_floating_point and dims == n + 1 and target.shape[0] == output[0] else missing
    reader = Reader("target", target, dims + max(missing, 0))
    if reader.shape[-n:] != output[-n:]:
        raise ValueError(f"target: expected the space {output[-n:]} of the prediction {output}, got {reader.given}")
    return reader


def _target_type(judge: losses.Loss, sample: Tensor, few: Tensor) -> Callable[[Tensor], Tensor]:
    """Labels as they are, or as int64 where the loss takes no smaller integers."""
    if few.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        try:
            judge(sample, few)
        except (RuntimeError, IndexError):
            return lambda t: t.long()
    return lambda t: t


def _total(judge: losses.Loss, target: Callable[[int], dict[str, Tensor]], tiles: int, device: torch.device) -> float:
    """The sum of the weights that a loss gives to the voxels."""
    queue, state = merged(lambda one, other: one + other)
    for index in range(tiles):
        weights = judge.weights(judge.module, target(index)["target"].to(device))  # type: ignore[misc]
        queue.add(index, float(weights.sum(dtype=torch.float64)))
    return float(state[0])


@contextmanager
def _bar(wanted: bool | None) -> Iterator[Report]:
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda name, step: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def report(name: str, step: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=None)
            if step < 0:
                bar.update(tasks[name], total=-step)
            else:
                bar.advance(tasks[name], step)

        yield report
