"""The closed tables: methods, metrics, and the parameters that a sweep may search."""

from dataclasses import dataclass
from typing import Literal

from orchestrator.spec.domains import Domain, OneOf, Real, Truth, Whole

Mode = Literal["max", "min"]
Value = bool | int | float | str

# Mirrors core.methods, which this package must not import (it would load torch); a test keeps the two equal.
METHODS = ("learned", "random")

# The natural direction of each metric; the last two need an attribute predictor for the model.
METRICS: dict[str, Mode] = {
    "identifiability": "max",
    "strength_error": "min",
    "fidelity_kid": "min",
    "globality": "max",
    "diversity": "max",
    "monotonicity": "max",
    "disentanglement": "max",
    "coverage": "max",
}


@dataclass(frozen=True)
class Parameter:
    """A searchable parameter. `learned_only`: it means nothing to the other methods."""

    domain: Domain
    default: Value
    learned_only: bool = False


PARAMETERS: dict[str, Parameter] = {
    "directions": Parameter(Whole(2, 4096), 16),
    "shift_scale": Parameter(Real(above=0, high=100), 1.0),
    "discriminator_weight": Parameter(Real(low=0, high=1000), 0.1, learned_only=True),
    "parametrisation": Parameter(OneOf(("shared", "per_step", "time")), "shared", learned_only=True),
    "orthonormal": Parameter(Truth(), True, learned_only=True),
    "start": Parameter(OneOf(("pca", "random")), "random", learned_only=True),
    # Learning rates of the three parts that train together.
    "direction_rate": Parameter(Real(above=0), 0.05, learned_only=True),
    "reconstructor_rate": Parameter(Real(above=0), 0.001, learned_only=True),
    "discriminator_rate": Parameter(Real(above=0), 0.0002, learned_only=True),
}

# Everything that a `when:` may ask about.
DOMAINS: dict[str, Domain] = {"method": OneOf(METHODS)} | {name: p.domain for name, p in PARAMETERS.items()}
