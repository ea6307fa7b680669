"""Make random orthonormal directions: the baseline for comparisons of methods."""

from dataclasses import asdict, dataclass

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.directions.provenance import provenance
from core.methods.learned.shift_control import ShiftControl
from core.model.denoiser import Denoiser
from core.samples.cache import SampleCache
from core.samples.training import SPREAD_SAMPLES, measured_spread, training_seeds


@dataclass(frozen=True)
class Settings:
    """The settings of the method. shift_scale: length of the shift at scale 1.0, in spreads of h."""

    directions: int = 16
    shift_scale: float = 0.5
    seed: int = 0


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Return K random orthonormal directions, shared by all steps, scaled by the measured spread of h.

    batch: samples drawn at a time to measure the spread; cache: where they are read and kept.
    """
    spread = measured_spread(denoiser, schedule, training_seeds(SPREAD_SAMPLES, settings.seed), batch, cache)
    shift = ShiftControl(settings.directions, denoiser.h_shape, spread, schedule.timesteps, seed=settings.seed)
    steps = len(schedule)
    return DirectionSet(
        shift().detach().expand(-1, steps, -1, -1, -1).clone(),
        (settings.shift_scale * spread.float()).expand(settings.directions, steps).clone(),
        schedule.timesteps,
        provenance=provenance("random", denoiser, schedule, asdict(settings)),
    )
