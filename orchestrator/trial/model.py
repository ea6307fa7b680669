"""Load the frozen model of a trial, its chain and its attribute predictor; scale, measure and draw sets with them."""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.execution.lean import lean
from core.execution.streaming import offloaded, partitioned
from core.methods import learned, random
from core.methods.learned.looks import PIXELS, open_look
from core.methods.sources import DENOISER
from core.methods.training_memory import has_vision
from core.metrics import Evaluation, calibrate, evaluate, moved
from core.metrics.calibration import STRENGTH, Calibrated, with_dials
from core.metrics.judges import NO_JUDGES, Judges
from core.metrics.strength import STRENGTH_TOLERANCE
from core.model.denoiser import Denoiser
from core.pictures.traversal_grid import traversal, traversal_grid
from core.predictors import classifier
from core.predictors.attributes import Attributes
from core.predictors.memory import Through
from core.predictors.vision import Extractor, open_vision
from core.samples.cache import SampleCache
from core.samples.draw import Sampling
from orchestrator.spec import BY_ATTRIBUTES, LOOKS, Sweep, countable
from orchestrator.trial.loading import StreamWeights, loaded, own_device
from orchestrator.trial.ranks import ALONE, Ranks
from orchestrator.trial.settings import method_of

RANDOM_DRAWS = 5  # sets of random directions that a champion is compared with
_LEAST_STRENGTH = 1e-3  # of a set that moves nothing; a set can only be scaled to a strength above 0


@dataclass(frozen=True)
class TrialModel:
    """The frozen model that a trial works with, its chain, its attribute predictor (None where it has none), a cache of
    unshifted samples, and what judges images alone: networks, and a second predictor that finds and names nothing.
    """

    denoiser: Denoiser
    schedule: Schedule
    attributes: Attributes | None
    cache: SampleCache | None = None
    judges: Judges = NO_JUDGES
    second_attributes: Attributes | None = None

    @classmethod
    def load(cls, sweep: Sweep, cache: SampleCache | None = None, ranks: Ranks = ALONE) -> "TrialModel":
        """Load the model that the sweep names.

        ranks: the processes over which weights are partitioned; a process alone keeps them in the CPU's memory instead.
        """
        device = own_device()
        stream: StreamWeights | None = None
        if sweep.gradient.weights == "partitioned" and ranks.gathering is not None:
            stream = partial(partitioned, rank=ranks.rank, world=ranks.world, gather=ranks.gathering.gather)
        elif sweep.gradient.weights != "device":
            stream = offloaded
        denoiser = loaded(sweep.model, device, sweep.train.precision, sweep.denoiser.use, stream)
        if sweep.gradient.lean:
            denoiser = lean(denoiser)
        schedule = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta)
        judges = judges_of(sweep, device)
        second = classifier.load_second(sweep.evaluate.second_predictor, sweep.model, device)
        return cls(denoiser, schedule, classifier.load(sweep.predictor, sweep.model, device), cache, judges, second)

    def networks_for(self, settings: Any) -> dict[str, Attributes | Extractor | None]:
        """Return the keyword arguments by which a method gets the networks beside the denoiser that it looks through.

        Raises UserError, of which ModelError is one, for a vision model that cannot be read or used.
        """
        if method_of(settings) in BY_ATTRIBUTES:
            return {"attributes": self.attributes}
        if isinstance(settings, learned.Settings) and has_vision(settings):
            return {"vision": _opened(settings.look, str(self.denoiser.device))}
        return {}

    def through(self, settings: Any) -> Through | None:
        """Return the network beside the denoiser through which the gradient of a method goes; None where none does."""
        networks = self.networks_for(settings)
        vision = networks.get("vision")
        if isinstance(vision, Extractor):
            return vision.embed_through
        return self.attributes.score_through if "attributes" in networks and self.attributes else None

    def _sampling(self, sweep: Sweep) -> Sampling:
        sampler = sweep.sampler
        return Sampling(sampler.injection, sampler.window, sampler.batch, self.cache)

    def scaled(self, sweep: Sweep, directions: DirectionSet) -> DirectionSet:
        """Return the set at the strength at which sets are compared: `evaluate.strength`, where null its own."""
        strength = sweep.evaluate.strength
        return directions if strength is None else self.at_strength(sweep, directions, strength)

    def at_strength(
        self, sweep: Sweep, directions: DirectionSet, strength: float, close: float = STRENGTH_TOLERANCE
    ) -> DirectionSet:
        """Return the set scaled to a strength, within a relative error of `close`."""
        return calibrate(
            self.denoiser,
            self.schedule,
            directions,
            strength,
            sampling=self._sampling(sweep),
            close=close,
            extractor=self.judges.features,
        )

    def strength_of(self, sweep: Sweep, directions: DirectionSet) -> float:
        """Return the strength at which a set is compared: `evaluate.strength`, where null the mean measured one."""
        if sweep.evaluate.strength is not None:
            return sweep.evaluate.strength
        sampling, extractor = self._sampling(sweep), self.judges.features
        measured = moved(self.denoiser, self.schedule, directions, sampling=sampling, extractor=extractor).mean()
        return max(float(measured), _LEAST_STRENGTH)

    def with_dials(self, sweep: Sweep, directions: DirectionSet) -> Calibrated:
        """Return the set with its dials, at `evaluate.strength`, or at the default strength where that is not set."""
        return with_dials(
            self.denoiser,
            self.schedule,
            directions,
            self.attributes,
            STRENGTH if sweep.evaluate.strength is None else sweep.evaluate.strength,
            sampling=self._sampling(sweep),
            extractor=self.judges.features,
        )

    def measure(self, sweep: Sweep, directions: DirectionSet, seeds: range) -> Evaluation:
        """Measure every metric of a set on the first `evaluate.seeds` of `seeds`, a range of held-out seeds.

        The next four times as many seeds draw the unshifted samples to compare with.
        """
        count = sweep.evaluate.seeds
        return evaluate(
            self.denoiser,
            self.schedule,
            directions,
            seeds[:count],
            reference_seeds=seeds[count : 5 * count],
            attributes=self.attributes,
            sampling=self._sampling(sweep),
            judges=self.judges,
            second=self.second_attributes,
        )

    def draw(self, sweep: Sweep, directions: DirectionSet, folder: Path) -> None:
        """Write traversal.png into `folder`: every direction at its scales, on a fixed seed."""
        images = traversal(
            self.denoiser,
            self.schedule,
            directions,
            sampling=self._sampling(sweep),
        )
        traversal_grid(images, directions).save(folder / "traversal.png")


def judges_of(sweep: Sweep, device: str = "cpu") -> Judges:
    """Return the networks beside the denoiser that the sweep measures with. Raises ModelError for an unreadable one."""
    networks = sweep.evaluate
    return Judges.load(networks.features, networks.inception, networks.lpips, networks.identity, device)


@lru_cache(maxsize=2)
def _opened(look: str, device: str) -> Extractor | None:
    """Open a vision model once for all trials of a process."""
    return open_look(look, device)


def vision_models_of(sweep: Sweep) -> dict[tuple[str, str], Extractor]:
    """Return the vision models that methods look through, by parameter and name.

    Raises ModelError for an unreadable one.
    """
    asked = [
        (parameter, str(look))
        for parameter in LOOKS
        for look in (countable(sweep.space[parameter]) or () if parameter in sweep.space else ())
        if look != DENOISER and (parameter, look) != ("learned.look", PIXELS)
    ]
    return {(parameter, look): open_vision(look, f"search.{parameter}: model") for parameter, look in asked}


def random_like(trial_model: TrialModel, directions: DirectionSet, sweep: Sweep, draw: int = 0) -> DirectionSet:
    """Return draw number `draw` of the baseline of a set: as many random directions, not scaled to its strength yet.

    Half of them are isotropic, half shaped by the covariance of h (core.methods.random), over samples that all draws
    share.
    """
    settings = random.Settings(len(directions), seed=sweep.seed, shaped=0.5, draw=draw)
    return random.find(trial_model.denoiser, trial_model.schedule, settings, sweep.sampler.batch, trial_model.cache)
