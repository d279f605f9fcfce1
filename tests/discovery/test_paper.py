"""The experiments of the paper."""

import numpy as np
import pytest
from scipy.linalg import expm


def test_experiments_of_the_paper():
    """The numbers reproduced from the paper's settings, within 0.05, and the structured generator beside them."""
    from lconv_fast.discovery import paper

    eight, sixteen = paper.run("shift")
    assert abs(eight.correlation - 0.747) < 0.05 and abs(sixteen.correlation - 0.929) < 0.05
    for size, expected in ((7, 0.27), (20, -0.01)):
        dense, structured = paper.run("regression", size, pairs=20_000)
        assert abs(dense.correlation - abs(expected)) < 0.05 and structured.correlation > 0.9999
    with pytest.raises(ValueError, match="experiment: expected one of shift, fixed, recursive, regression"):
        paper.run("other")
    with pytest.raises(ValueError, match="size: expected one of 7, 20, as in the paper, got 9"):
        paper.run("fixed", 9)


def test_band_limited_derivative():
    """Exact for band-limited functions, and exp(m D) shifts by m."""
    from lconv_fast.discovery.paper import band_limited_derivative

    size, points = 15, np.arange(15)
    wave = np.sin(2 * np.pi * 3 * points / size)
    derivative = band_limited_derivative(size)
    assert np.allclose(derivative @ wave, 2 * np.pi * 3 / size * np.cos(2 * np.pi * 3 * points / size))
    values = np.random.default_rng(0).standard_normal(size)
    assert np.allclose(expm(2 * derivative) @ values, np.roll(values, -2))
