"""Spatial sharding on torch.distributed: each rank holds a part of the volume, and results are those of one process."""

from lconv_fast.sharding.cost import explain
from lconv_fast.sharding.model import shard
from lconv_fast.sharding.parts import full_tensor, local_part

__all__ = ["explain", "full_tensor", "local_part", "shard"]
