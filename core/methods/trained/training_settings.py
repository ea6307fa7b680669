"""The settings that every method that trains through the whole chain has."""

from dataclasses import dataclass, field

from core.chain.gradient import FullGraph, GradientPolicy
from core.chain.step import INJECTIONS, Injection
from core.errors import UserError
from core.methods.trained.shift_control import PARAMETRISATIONS, Parametrisation


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings that all trained methods have. Magnitudes are in spreads of h, rates are Adam's learning rates."""

    shift_scale: float = 0.5  # largest magnitude
    discriminator_weight: float = 3.0  # 0: no discriminator
    iterations: int = 400
    batch: int = 16
    micro_batch: int | None = None  # None: the whole batch at once
    pool: int = 1024  # number of training samples; drawn once, used repeatedly
    injection: Injection = "symmetric"
    window: tuple[int, int] | None = None
    parametrisation: Parametrisation = "shared"
    orthonormal: bool = False
    strength_floor: float = 1 / 6  # smallest magnitude, as a fraction of the largest
    direction_rate: float = 0.02
    discriminator_rate: float = 0.001
    seed: int = 0
    gradient: GradientPolicy = field(default_factory=FullGraph)

    def __post_init__(self) -> None:
        micro = self.micro_batch or self.batch
        if self.batch % micro:
            raise UserError(f"micro_batch: got {micro}; it must divide the batch of {self.batch}")
        for name, value, allowed in (
            ("injection", self.injection, INJECTIONS),
            ("parametrisation", self.parametrisation, PARAMETRISATIONS),
        ):
            if value not in allowed:
                raise UserError(f"{name}: got '{value}'; allowed: {', '.join(allowed)}")
