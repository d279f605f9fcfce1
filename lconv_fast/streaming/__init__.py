"""Exact training and prediction on volumes larger than memory. `stream` makes a `Streamed` of a model."""

from lconv_fast.streaming.stream import Streamed, stream

__all__ = ["Streamed", "stream"]
