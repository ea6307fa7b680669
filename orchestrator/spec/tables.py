"""The fixed tables of methods, metrics, and the parameters that a sweep may search."""

from dataclasses import dataclass
from typing import Literal

from orchestrator.spec.domains import Box, Domain, OneOf, OrWord, Real, Text, Truth, Whole

Mode = Literal["max", "min"]
Value = bool | int | float | str

# Mirrors core.methods, which this package must not import (it would load torch); a test keeps the two equal.
METHODS = ("learned", "guided", "pca", "jacobian", "semantic", "sae", "supervised", "random")

# The methods that train: these are checkpointed and measured on the way, ASHA stops them.
TRAINED = ("learned", "guided")
BY_ATTRIBUTES = ("guided", "supervised")  # the methods that find a direction for each attribute of a predictor

# Mirrors core.metrics.calibration.STRENGTH, which loads torch; a test keeps the two equal.
STRENGTH = 0.5

# Mirrors core.metrics.networks.inception.FEATURES, which loads torch; a test keeps the two equal.
INCEPTION_FEATURES = 2048

# Whether larger or smaller values of a metric are better. Disentanglement and coverage need an attribute predictor for
# the model, second_... a second one, and the last four metrics a network whose weights are at hand.
METRICS: dict[str, Mode] = {
    "factor_score": "max",
    "factor_coverage": "max",
    "purity": "max",
    "told_apart": "max",
    "identifiability": "max",
    "strength_error": "min",
    "fidelity_kid": "min",
    "globality": "max",
    "diversity": "max",
    "monotonicity": "max",
    "evenness": "max",
    "locality": "max",
    "disentanglement": "max",
    "coverage": "max",
    "second_disentanglement": "max",
    "second_coverage": "max",
    "fid": "min",
    "inception_kid": "min",
    "lpips": "min",
    "identity": "max",
}


# Mirrors core.methods.learned.training, which loads torch: weights of the terms on two samples of one direction.
PAIRED = ("consistency_weight", "purity_weight", "locality_weight")


@dataclass(frozen=True)
class Parameter:
    """A searchable parameter, and the methods that use it.

    default: None stands for the sweep's own value of that name.
    """

    domain: Domain
    default: Value | None
    methods: tuple[str, ...] = METHODS


_LEARNED, _GUIDED, _PCA, _JACOBIAN = ("learned",), ("guided",), ("pca",), ("jacobian",)
_SEMANTIC, _SAE, _SUPERVISED = ("semantic",), ("sae",), ("supervised",)

PARAMETERS: dict[str, Parameter] = {
    "directions": Parameter(Whole(2, 4096), 16, ("learned", "pca", "jacobian", "semantic", "sae", "random")),
    "shift_scale": Parameter(Real(above=0, high=100), 0.5, (*TRAINED, "jacobian", "random")),
    "seed": Parameter(Whole(0, 2**32 - 1), None),
    "discriminator_weight": Parameter(Real(low=0, high=1000), 3.0, TRAINED),
    "consistency_weight": Parameter(Real(low=0, high=1000), 1.0, _LEARNED),
    "purity_weight": Parameter(Real(low=0, high=1000), 30.0, _LEARNED),
    "locality_weight": Parameter(Real(low=0, high=1000), 100.0, _LEARNED),
    "parametrisation": Parameter(OneOf(("shared", "per_step", "time")), "shared", TRAINED),
    "orthonormal": Parameter(Truth(), False, TRAINED),
    "start": Parameter(OneOf(("slopes", "pca", "random")), "slopes", _LEARNED),
    # Learning rates of the three parts that train together.
    "direction_rate": Parameter(Real(above=0), 0.02, TRAINED),
    "reconstructor_rate": Parameter(Real(above=0), 0.001, _LEARNED),
    "discriminator_rate": Parameter(Real(above=0), 0.001, TRAINED),
    # A dotted name belongs to the method it opens with.
    "learned.look": Parameter(OrWord(Text(), ("pixels", "denoiser")), "pixels", _LEARNED),  # or a vision model
    "guided.attributes": Parameter(OrWord(Text(), ("all",)), "all", _GUIDED),  # separated by semicolons
    "guided.start": Parameter(OneOf(("slopes", "supervised", "random")), "slopes", _GUIDED),
    "guided.effect_weight": Parameter(Real(low=0, high=1000), 1.0, _GUIDED),
    "guided.target": Parameter(Real(above=0, high=100), 1.5, _GUIDED),
    "pca.samples": Parameter(Whole(2), 1024, _PCA),
    "pca.joint": Parameter(Truth(), True, _PCA),
    "pca.sigmas": Parameter(Real(above=0, high=100), 3.0, _PCA),
    "jacobian.step": Parameter(OrWord(Whole(0), ("middle", "every")), "middle", _JACOBIAN),
    "jacobian.image": Parameter(Whole(0), 0, _JACOBIAN),
    "jacobian.mask": Parameter(OrWord(Text(), ("none",)), "none", _JACOBIAN),
    "jacobian.box": Parameter(OrWord(Box(), ("none",)), "none", _JACOBIAN),
    "semantic.look": Parameter(OrWord(Text(), ("denoiser",)), "denoiser", _SEMANTIC),  # or a vision model
    "semantic.sources": Parameter(OneOf(("flattest", "components")), "flattest", _SEMANTIC),
    "semantic.samples": Parameter(Whole(2), 1024, _SEMANTIC),
    "semantic.sigmas": Parameter(Real(above=0, high=100), 3.0, _SEMANTIC),
    "sae.width": Parameter(Whole(2, 2**16), 256, _SAE),
    "sae.active": Parameter(Whole(1, 2**16), 4, _SAE),
    "sae.seen": Parameter(OneOf(("whole", "places", "pooled")), "places", _SAE),
    "sae.steps": Parameter(OneOf(("all", "early", "late")), "all", _SAE),
    "sae.samples": Parameter(Whole(2), 1024, _SAE),
    "sae.iterations": Parameter(Whole(1), 1000, _SAE),
    "sae.sigmas": Parameter(Real(above=0, high=100), 3.0, _SAE),
    "supervised.attribute": Parameter(OrWord(Text(), ("all",)), "all", _SUPERVISED),
    "supervised.samples": Parameter(Whole(2), 1024, _SUPERVISED),
    "supervised.extremes": Parameter(Whole(1), 100, _SUPERVISED),
    "supervised.balance": Parameter(OrWord(Text(), ("none",)), "none", _SUPERVISED),
    "supervised.project": Parameter(Truth(), False, _SUPERVISED),
    "supervised.pairs": Parameter(OrWord(Text(), ("none",)), "none", _SUPERVISED),
}

LOOKS = ("semantic.look", "learned.look")  # parameters that may name a vision model

# The names that a `when:` may contain.
DOMAINS: dict[str, Domain] = {"method": OneOf(METHODS)} | {name: p.domain for name, p in PARAMETERS.items()}
