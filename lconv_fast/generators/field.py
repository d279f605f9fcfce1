"""Vector fields given at each point: n numbers a generator and point."""

from __future__ import annotations

from torch import Tensor

from lconv_fast.checks import check_generators
from lconv_fast.generators.on_grid import DerivativeGenerators, unit_orders


class FieldGenerators(DerivativeGenerators):
    """L_i = v_i^a(x) d_a with a vector field given at each point, in pixels per unit time (eq. 9 of Dehmamy et al.).

    Args:
        field: (n_L, n, *spatial), n = 1, 2 or 3 axes in tensor order; fixes the grid.
        accuracy, padding_mode, learnable: as for AffineGenerators.
    """

    field: Tensor

    def __init__(
        self, field: Tensor, *, accuracy: int | str = 2, padding_mode: str = "zeros", learnable: bool = False
    ) -> None:
        super().__init__()
        check_generators("field", field, (3, 4, 5), "(n_L, n, *spatial)")
        if field.shape[1] != field.dim() - 2 or 0 in field.shape:
            raise ValueError(
                f"field: expected shape (n_L, n, *spatial) with one component for each of the {field.dim() - 2} "
                f"axes, got {tuple(field.shape)}"
            )
        self.num_generators, self.ndim = field.shape[0], field.dim() - 2
        self._set_derivatives(unit_orders(self.ndim), accuracy, padding_mode)
        self._keep("field", field, learnable)

    def coefficients(self) -> Tensor:
        return self.field

    def grid_shape(self) -> tuple[int, ...]:
        return tuple(self.field.shape[2:])
