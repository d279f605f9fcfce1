"""The rank test."""

import numpy as np

from lconv_fast.discovery.dimension import rank_test


def test_rank_test_is_calibrated():
    """Estimates with known covariances: the true rank is rejected at the level alpha, and a rank is never too small."""
    random, alpha, rank, trials = np.random.default_rng(0), 0.1, 2, 200
    directions, metric = np.linalg.qr(random.standard_normal((6, 6)))[0][:rank], np.eye(6)
    too_large = 0
    for _ in range(trials):
        roots = 0.05 * (np.eye(6) + 0.3 * random.standard_normal((16, 6, 6)))
        m = random.standard_normal((16, rank)) @ directions + np.einsum(
            "pab,pb->pa", roots, random.standard_normal((16, 6))
        )
        found = rank_test(m, roots @ roots.transpose(0, 2, 1), metric, alpha)
        assert found.dimension >= rank
        too_large += found.dimension > rank
    # Binomial: 20 +- 4.2 of 200.
    assert 6 <= too_large <= 35
