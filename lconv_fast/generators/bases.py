"""Named bases: the one table from a name to generators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lconv_fast.checks import choice
from lconv_fast.generators import algebras
from lconv_fast.generators.affine import AffineGenerators
from lconv_fast.generators.base import Generators
from lconv_fast.generators.differential import second_order, translation_and_laplacian
from lconv_fast.generators.normalise import normalise

BASES: dict[str, Callable[..., Generators]] = {
    **{name: partial(AffineGenerators.named, name) for name in algebras.ALGEBRAS},
    "laplacian": translation_and_laplacian,
    "unit_laplacian": lambda ndim, **keywords: normalise(translation_and_laplacian(ndim, **keywords)),
    "second": second_order,
}
# Of affine fields; those of second order take no coordinates.
KEYWORDS = "accuracy", "padding_mode", "learnable", "coordinate_scale"


def named(name: str, ndim: int = 2, **keywords: Any) -> Generators:
    """The basis `name` on `ndim` axes; keywords as for its class.

    Affine fields, by AffineGenerators.named: translation, rotation, scaling, se, similitude, sl, gl, affine, lorentz.
    Of second order, by DifferentialGenerators: laplacian (d_a and the Laplacian, n + 1 generators), unit_laplacian (the
    same, each divided by its root mean square on white noise, which trains better) and second (d_a and all d_a d_b with
    a <= b, n + n (n + 1) / 2). Raises ValueError for another name.
    """
    choice("generators", name, BASES)
    algebras.check_ndim(ndim)
    taken = KEYWORDS if name in algebras.ALGEBRAS else KEYWORDS[:3]
    for keyword in keywords:
        if keyword not in taken:
            raise TypeError(f"{keyword}: no such keyword; the generators {name!r} take {', '.join(taken)}")
    return BASES[name](ndim, **keywords)
