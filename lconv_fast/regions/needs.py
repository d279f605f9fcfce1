"""Which region of every value the region of an output needs: the rules' intervals, followed back through the graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lconv_fast.regions.graph import Graph
from lconv_fast.regions.intervals import Interval, Region, join, read
from lconv_fast.regions.rules import Kind, Value


def needs(graph: Graph, targets: Mapping[Value, Region], known: Collection[Value] = ()) -> dict[Value, Region]:
    """The region of each field that the targets need, back to the input and to the values that are `known`."""
    result: dict[Value, Region] = dict(targets)
    for value in reversed(list(graph)):
        if value not in result or value in known or value.kind != Kind.FIELD or value.rule is None:
            continue
        for operand in value.fields:
            if operand.kind != Kind.FIELD:
                continue
            region = before(value, operand, result[value])
            there = result.get(operand)
            result[operand] = (
                region if there is None else tuple(join((*a, *b)) for a, b in zip(there, region, strict=True))
            )
    return result


def before(value: Value, operand: Value, region: Region) -> Region:
    """The region of an operand that a region of its operator's output reads."""
    maps = value.maps(operand)
    return tuple(
        join(part for one in segments for part in read(axis.span(one), size, axis.boundary))
        for segments, axis, size in zip(region, maps, operand.extents, strict=True)
    )


def unbounded(graph: Graph, output: Value, source: Value, axis: int, interval: Interval) -> Interval | None:
    """What an interval of the output's axis would read of `source`, if no axis had an end; None: nothing."""
    spans: dict[Value, Interval] = {output: interval}
    for value in reversed(list(graph)):
        if value not in spans or value is source or value.kind != Kind.FIELD or value.rule is None:
            continue
        for operand in value.fields:
            first, stop = value.rule.anywhere(value, operand)[axis].span(spans[value])
            if first < stop:
                there = spans.get(operand, (first, stop))
                spans[operand] = (min(first, there[0]), max(stop, there[1]))
    return spans.get(source)


def whole(value: Value) -> Region:
    return tuple(((0, size),) for size in value.extents)
