"""Field theory of layers and losses: section 6 of Dehmamy et al. 2021; and how far any model is from a symmetry."""

from lconv_fast.physics.audit_report import Audit, Layer
from lconv_fast.physics.currents import noether_current, stress_energy
from lconv_fast.physics.derivatives import derivatives, divergence, flux
from lconv_fast.physics.discovery import NoetherGenerators, discover_by_noether
from lconv_fast.physics.equivariance import audit, equivariance_error
from lconv_fast.physics.group import exponential
from lconv_fast.physics.lagrangian import QuadraticLagrangian
from lconv_fast.physics.measure import haar_measure, invariant_loss
from lconv_fast.physics.stepping import VariationalStep, variational_step
from lconv_fast.physics.variation import Robustness, euler_lagrange, robustness

__all__ = [
    "Audit",
    "Layer",
    "NoetherGenerators",
    "QuadraticLagrangian",
    "Robustness",
    "VariationalStep",
    "audit",
    "derivatives",
    "discover_by_noether",
    "divergence",
    "equivariance_error",
    "euler_lagrange",
    "exponential",
    "flux",
    "haar_measure",
    "invariant_loss",
    "noether_current",
    "robustness",
    "stress_energy",
    "variational_step",
]
