"""Symmetry discovery: learn the generators from data, name the algebra, hand over a layer. Needs scipy."""

try:
    import scipy as scipy
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        'lconv_fast.discovery needs scipy: pip install ".[discovery]" in the source folder', name="scipy"
    ) from missing

from lconv_fast.discovery.algebra import Algebra, identify
from lconv_fast.discovery.discover import discover
from lconv_fast.discovery.result import Result
from lconv_fast.discovery.routes.lconv import recursive_lconv
from lconv_fast.discovery.scrambled import Unscrambled, field_on, unscramble
from lconv_fast.discovery.spans import Alignment, alignment, centralizer, closed

__all__ = [
    "Algebra",
    "Alignment",
    "Result",
    "Unscrambled",
    "alignment",
    "centralizer",
    "closed",
    "discover",
    "field_on",
    "identify",
    "recursive_lconv",
    "unscramble",
]
