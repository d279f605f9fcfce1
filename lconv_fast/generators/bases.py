"""Named bases: the one table from a name to generators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lconv_fast.checks import choice
from lconv_fast.generators import algebras
from lconv_fast.generators.affine import AffineGenerators
from lconv_fast.generators.affine_differential import fields_and_laplacian
from lconv_fast.generators.base import Generators
from lconv_fast.generators.differential import second_order, translation_and_laplacian
from lconv_fast.generators.normalise import normalise

_FIELDS: dict[str, Callable[..., Generators]] = {
    name: partial(AffineGenerators.named, name) for name in algebras.ALGEBRAS
}
_CONSTANT: dict[str, Callable[..., Generators]] = {
    "laplacian": translation_and_laplacian,
    "unit_laplacian": lambda ndim, **keywords: normalise(translation_and_laplacian(ndim, **keywords)),
    "second": second_order,
}
_WITH_LAPLACIAN: dict[str, Callable[..., Generators]] = {  # translations with it are "laplacian"
    f"{name}+laplacian": partial(fields_and_laplacian, name) for name in algebras.ALGEBRAS if name != "translation"
}
BASES: dict[str, Callable[..., Generators]] = {**_FIELDS, **_CONSTANT, **_WITH_LAPLACIAN}
# The last for what grows with x.
KEYWORDS = "accuracy", "padding_mode", "learnable", "coordinate_scale"


def named(name: str, ndim: int = 2, **keywords: Any) -> Generators:
    """The basis `name` on `ndim` axes; keywords as for its class.

    Affine fields, by AffineGenerators.named: translation, rotation, scaling, se, similitude, sl, gl, affine, lorentz.
    Each but the first also with the Laplacian, as rotation+laplacian, by AffineDifferentialGenerators.
    Of second order, by DifferentialGenerators: laplacian (d_a and the Laplacian, n + 1 generators), unit_laplacian (the
    same, each divided by its root mean square on white noise, which trains better) and second (d_a and all d_a d_b with
    a <= b, n + n (n + 1) / 2). Raises ValueError for another name.
    """
    choice("generators", name, BASES)
    algebras.check_ndim(ndim)
    taken = KEYWORDS[:3] if name in _CONSTANT else KEYWORDS
    for keyword in keywords:
        if keyword not in taken:
            raise TypeError(f"{keyword}: no such keyword; the generators {name!r} take {', '.join(taken)}")
    return BASES[name](ndim, **keywords)
