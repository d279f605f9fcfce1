"""Spatial sharding on torch.distributed: each rank holds a part of the image or volume, and results are those of
one process."""

from lconv_fast.sharding.parts import full_tensor, local_part
from lconv_fast.sharding.shard import shard

__all__ = ["full_tensor", "local_part", "shard"]
