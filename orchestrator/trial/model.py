"""What a trial works with: the frozen model, its chain, its attribute predictor, and how a set is scaled, measured and
drawn with them.
"""

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
from orchestrator.spec import Sweep
from orchestrator.trial.loading import Away, loaded, own_device
from orchestrator.trial.ranks import ALONE, Ranks


@dataclass(frozen=True)
class TrialModel:
    """What a trial works with: the frozen model, its chain, its attribute predictor if it has one, and the unshifted
    samples that are there already.
    """

    denoiser: Denoiser
    schedule: Schedule
    attributes: Attributes | None
    cache: SampleCache | None = None
    judges: Judges = NO_JUDGES

    @classmethod
    def load(cls, sweep: Sweep, cache: SampleCache | None = None, ranks: Ranks = ALONE) -> "TrialModel":
        """ranks: those over which weights are partitioned; a process alone has them in the CPU's memory instead."""
        device = own_device()
        away: Away | None = None
        if sweep.gradient.weights == "partitioned" and ranks.assembly is not None:
            away = partial(partitioned, rank=ranks.rank, world=ranks.world, gather=ranks.assembly.gather)
        elif sweep.gradient.weights != "device":
            away = offloaded
        denoiser = loaded(sweep.model, device, sweep.train.precision, sweep.denoiser.use, away)
        if sweep.gradient.lean:
            denoiser = lean(denoiser)
        schedule = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta)
        judges = judges_of(sweep, device)
        return cls(denoiser, schedule, classifier.load(sweep.predictor, sweep.model, device), cache, judges)

    def scaled(self, sweep: Sweep, directions: DirectionSet) -> DirectionSet:
        """The set as strong as `evaluate.strength` says, or as it is where the sweep says nothing."""
        strength, sampler = sweep.evaluate.strength, sweep.sampler
        if strength is None:
            return directions
        return calibrate(
            self.denoiser,
            self.schedule,
            directions,
            strength,
            injection=sampler.injection,
            window=sampler.window,
            batch=sampler.batch,
            cache=self.cache,
            extractor=self.judges.features,
        )

    def with_dials(self, sweep: Sweep, directions: DirectionSet) -> Calibrated:
        """The set with its dials, at the strength that the sweep asks for if it does."""
        sampler = sweep.sampler
        return with_dials(
            self.denoiser,
            self.schedule,
            directions,
            self.attributes,
            STRENGTH if sweep.evaluate.strength is None else sweep.evaluate.strength,
            injection=sampler.injection,
            window=sampler.window,
            batch=sampler.batch,
            cache=self.cache,
            extractor=self.judges.features,
        )

    def measure(self, sweep: Sweep, directions: DirectionSet, seeds: range) -> Evaluation:
        """Every metric of a set on the first `evaluate.seeds` of a range of held-out seeds."""
        count = sweep.evaluate.seeds
        return evaluate(
            self.denoiser,
            self.schedule,
            directions,
            seeds[:count],
            reference_seeds=seeds[count : 5 * count],
            attributes=self.attributes,
            injection=sweep.sampler.injection,
            window=sweep.sampler.window,
            batch=sweep.sampler.batch,
            cache=self.cache,
            judges=self.judges,
        )

    def draw(self, sweep: Sweep, directions: DirectionSet, folder: Path) -> None:
        """traversal.png: every direction across its scales, on a fixed seed."""
        sampler = sweep.sampler
        images = traversal(
            self.denoiser,
            self.schedule,
            directions,
            injection=sampler.injection,
            window=sampler.window,
            batch=sampler.batch,
        )
        traversal_grid(images, directions).save(folder / "traversal.png")


def judges_of(sweep: Sweep, device: str = "cpu") -> Judges:
    """The networks that a sweep asks beside the denoiser. Raises ModelError for one that cannot be read."""
    asked = sweep.evaluate
    return Judges.load(asked.features, asked.inception, asked.lpips, asked.identity, device)


def random_like(trial_model: TrialModel, directions: DirectionSet, sweep: Sweep) -> DirectionSet:
    """The honest baseline of a set: as many random directions, of the same mean length."""
    settings = random.Settings(len(directions), seed=sweep.seed)
    found = random.find(trial_model.denoiser, trial_model.schedule, settings, sweep.sampler.batch, trial_model.cache)
    return replace(found, sigma=found.sigma * (directions.sigma.mean() / found.sigma.mean()))
