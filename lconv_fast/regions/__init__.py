"""Regions: what a model needs around each part of its output. `regions` makes a `Plan`."""

from lconv_fast.regions.plan import Axis, Plan, regions

__all__ = ["Axis", "Plan", "regions"]
