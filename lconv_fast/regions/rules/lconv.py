"""The L-conv operator on a piece of the grid, at its true coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconv_fast.form.calculus import F, G, partial
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry
from lconv_fast.regions.cut import cut
from lconv_fast.regions.intervals import AxisMap, Box, runs
from lconv_fast.regions.rules.base import Dims, NotLocal, Rule, Tile, Value, by_axis, spatial_last


class LConv(Rule):
    """y(x) = sum of v(x) f(x + tap) W; of the transpose, y(x) = sum of v(x - tap) f(x - tap) W."""

    bilinear = True

    def geometry(self, op: Value) -> Geometry:
        return Geometry(*(op[name] for name in Geometry._fields))

    def dims(self, op: Value) -> Dims:
        operand = op.fields[0]
        if len(op.fields) != 1 or operand.node is not op.node.args[0]:
            raise NotLocal("mixes with weights or coefficients that depend on space")
        geometry = self.geometry(op)
        if len(operand.places) != geometry.ndim:
            raise NotLocal(f"acts on {geometry.ndim} axes, of {len(operand.places)} of space")
        spatial_last(op, operand)
        if any(geometry.halo):
            raise NotLocal("has a halo of its own")
        return operand.dims

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        geometry = self.geometry(op)
        mode = PaddingMode(geometry.padding_mode).name.lower()
        maps = []
        for a in range(geometry.ndim):
            offsets = [0, *geometry.taps[a :: geometry.ndim]]
            low, high = (-max(offsets), -min(offsets)) if op["transposed"] else (min(offsets), max(offsets))
            maps.append(AxisMap(geometry.stride[a], 1, low, high, mode))
        return by_axis(spatial_last(op, operand), maps)

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        axes, geometry = spatial_last(op, operand), self.geometry(op)
        if geometry.stride != [1] * len(axes):
            return self.strided(op, box, tile)
        # Kernels are fastest on arrays without a halo: points around the piece are computed too, and cut off. True
        # borders stay what they are; across a periodic one stands the other side, and beyond it nothing.
        inner = [box[axis] for axis in axes]
        maps, sizes = [op.maps(operand)[axis] for axis in axes], geometry.spatial
        mode = PaddingMode(geometry.padding_mode)
        outer = [(first + m.low, stop + m.high) for (first, stop), m in zip(inner, maps, strict=True)]
        if all(interval == (0, size) for interval, size in zip(inner, sizes, strict=True)):
            outer = inner
        elif mode.periodic:
            mode = PaddingMode.ZEROS
        else:
            outer = [(max(first, 0), min(stop, size)) for (first, stop), size in zip(outer, sizes, strict=True)]
        spans: list[Any] = [None] * len(axes)
        for axis, interval in zip(axes, outer, strict=True):
            spans[axis] = interval
        data = tile.piece(operand, tuple(spans), [m.boundary for m in op.maps(operand)])
        weight, bias, coefficients = (
            tile.small(op["weight"]),
            tile.small(op["bias"]),
            self.coefficients(op, outer, tile),
        )
        piece = self.placed(geometry, outer, [0, 0] * len(axes))._replace(padding_mode=int(mode))
        if op["transposed"]:
            if coefficients.dim() == 2 + len(axes) and geometry.kind == CoefficientKind.AFFINE:
                piece = piece._replace(kind=int(CoefficientKind.SAMPLED))
            y = partial(F, (coefficients, None, weight, data), piece, op["identity"], bias)
        else:
            y = partial(G, (coefficients, data, weight, None), piece, op["identity"], bias)
        offsets = [(first - start, stop - start) for (first, stop), (start, _) in zip(inner, outer, strict=True)]
        return cut(y, {2 + k: offset for k, offset in enumerate(offsets)})

    def strided(self, op: Value, box: Box, tile: Tile) -> Tensor:
        """Every stride-th point: the piece begins at one, its surroundings are a halo."""
        (operand,) = op.fields
        axes, geometry = spatial_last(op, operand), self.geometry(op)
        data, weight, bias = self.operand(op, operand, box, tile), tile.small(op["weight"]), tile.small(op["bias"])
        maps = [op.maps(operand)[axis] for axis in axes]
        grid = [(box[axis][0] * m.num, (box[axis][1] - 1) * m.num + 1) for axis, m in zip(axes, maps, strict=True)]
        halo = [side for m in maps for side in (-m.low, m.high)]
        piece = self.placed(geometry, grid, halo)
        return partial(G, (self.coefficients(op, grid, tile), data, weight, None), piece, op["identity"], bias)

    @staticmethod
    def placed(geometry: Geometry, grid: list[tuple[int, int]], halo: list[int]) -> Geometry:
        """The geometry of a piece, whose border holds what the padding mode showed there."""
        return geometry._replace(
            spatial=[stop - first for first, stop in grid],
            padding_mode=int(PaddingMode.ZEROS),
            halo=halo,
            origin=[first + before for (first, _), before in zip(grid, geometry.origin, strict=True)],
        )

    def coefficients(self, op: Value, grid: list[tuple[int, int]], tile: Tile) -> Tensor:
        """v on a piece of the grid that may reach across its border."""
        geometry, node = self.geometry(op), op["coefficients"]
        sizes = geometry.spatial
        inside = all(first >= 0 and stop <= size for (first, stop), size in zip(grid, sizes, strict=True))
        mode = PaddingMode(geometry.padding_mode).name.lower()
        if geometry.kind == CoefficientKind.SAMPLED:
            parts = [runs(interval, size, mode) for interval, size in zip(grid, sizes, strict=True)]
            return _gather(tile, node, parts)
        if geometry.kind == CoefficientKind.AFFINE and not inside and op["transposed"]:
            # Across the border stands the other side of the grid, with the coordinates that it has there.
            v = tile.small(node)
            sampled = v[..., -1].reshape(*v.shape[:2], *[1] * len(grid))
            for k, ((first, stop), size) in enumerate(zip(grid, sizes, strict=True)):
                index = torch.arange(first, stop, dtype=torch.float64, device=v.device) % size
                x = ((index - geometry.center[k]) / geometry.scale).to(v.dtype)
                slope = v[..., k].reshape(*v.shape[:2], *[1] * len(grid))
                sampled = sampled + slope * x.reshape(-1, *[1] * (len(grid) - 1 - k))
            return sampled.contiguous()
        return tile.small(node)


def _gather(tile: Tile, node: Any, parts: list[list[Any]], narrow: dict[int, Any] | None = None) -> Tensor:
    """Numbers that are sampled on the grid, from each combination of the parts of the axes; zero outside."""
    place = len(narrow or {})
    if place == len(parts):
        return tile.small(node, {2 + k: part for k, part in (narrow or {}).items()})
    inner = [part for part in parts[place] if not isinstance(part, int)]
    pieces = [_gather(tile, node, parts, {**(narrow or {}), place: part}) for part in inner]
    result = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2 + place)
    if len(inner) == len(parts[place]):
        return result
    low = parts[place][0] if isinstance(parts[place][0], int) else 0
    high = parts[place][-1] if isinstance(parts[place][-1], int) else 0
    back = result.dim() - 1 - (2 + place)
    return torch.nn.functional.pad(result, [0, 0] * back + [low, high])
