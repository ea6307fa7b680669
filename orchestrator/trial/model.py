"""Load the frozen model of a trial, its chain and its attribute predictor; scale, measure and draw sets with them."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.execution.lean import lean
from core.execution.streaming import offloaded, partitioned
from core.methods import random
from core.metrics import Evaluation, calibrate, evaluate
from core.metrics.calibration import STRENGTH, Calibrated, with_dials
from core.metrics.judges import NO_JUDGES, Judges
from core.model.denoiser import Denoiser
from core.pictures.traversal_grid import traversal, traversal_grid
from core.predictors import classifier
from core.predictors.attributes import Attributes
from core.samples.cache import SampleCache
from core.samples.draw import Sampling
from orchestrator.spec import Sweep
from orchestrator.trial.loading import StreamWeights, loaded, own_device
from orchestrator.trial.ranks import ALONE, Ranks


@dataclass(frozen=True)
class TrialModel:
    """The frozen model that a trial works with, its chain, its attribute predictor (None where it has none), a cache of
    unshifted samples, and the networks that judge images.
    """

    denoiser: Denoiser
    schedule: Schedule
    attributes: Attributes | None
    cache: SampleCache | None = None
    judges: Judges = NO_JUDGES

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
        return cls(denoiser, schedule, classifier.load(sweep.predictor, sweep.model, device), cache, judges)

    def _sampling(self, sweep: Sweep) -> Sampling:
        sampler = sweep.sampler
        return Sampling(sampler.injection, sampler.window, sampler.batch, self.cache)

    def scaled(self, sweep: Sweep, directions: DirectionSet) -> DirectionSet:
        """Return the set scaled to the strength `evaluate.strength`, or unchanged where the sweep does not set it."""
        strength = sweep.evaluate.strength
        if strength is None:
            return directions
        return calibrate(
            self.denoiser,
            self.schedule,
            directions,
            strength,
            sampling=self._sampling(sweep),
            extractor=self.judges.features,
        )

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


def random_like(trial_model: TrialModel, directions: DirectionSet, sweep: Sweep) -> DirectionSet:
    """Return the baseline of a set: as many random directions, of the same mean length."""
    settings = random.Settings(len(directions), seed=sweep.seed)
    random_set = random.find(
        trial_model.denoiser, trial_model.schedule, settings, sweep.sampler.batch, trial_model.cache
    )
    return replace(random_set, sigma=random_set.sigma * (directions.sigma.mean() / random_set.sigma.mean()))
