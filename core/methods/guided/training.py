"""Train one direction for each named attribute of a predictor, through the whole chain.

This unites the attribute classifier of Haas et al. (arXiv 2303.11073, section 3.3), which there only chooses samples,
with the gradient through the whole chain of Zhang et al. (arXiv 2310.09912). One iteration, on a batch of samples x_0
with known noise x_T:

    k ~ uniform, m ~ uniform in +-[floor, 1]            a direction and a magnitude for each sample
    x_0' = chain(x_T, delta_h = m * shift_scale * s_t * d_k,t)
    c_a = sign(m) (score_a(x_0') - score_a(x_0)) / deviation_a               mean over the two samples of a pair
    the shift control descends   (1 - c_k / sum_a |c_a|) + e max(0, 1 - c_k / (target |m|)) + w fidelity

score_a is the predictor's score of the images, deviation_a its standard deviation over unshifted samples. The sum goes
over all attributes of the predictor, so that those that are not pursued are kept. What trained methods share, the
discriminator among it, is in core.methods.trained.chain_learner.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.methods.attribute_scores import predictor_of, refuse_repeated, refuse_useless_scores, scores_of
from core.methods.guided import losses
from core.methods.guided.starts import differences_of_means
from core.methods.trained.chain_learner import ChainLearner, HasShift, Seen, Workers, trained
from core.methods.trained.starts import pure_directions, spread_of
from core.methods.trained.training_settings import TrainingSettings
from core.model.denoiser import Denoiser
from core.predictors.attributes import Attributes
from core.samples.cache import SampleCache
from core.samples.training import Pool

Start = Literal["slopes", "supervised", "random"]
STARTS = ("slopes", "supervised", "random")


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """The settings of the method, beside those of every trained method."""

    iterations: int = 200
    attributes: tuple[str, ...] = ()  # empty: all attributes of the predictor
    start: Start = "slopes"  # of the scores; "supervised": the differences of means of that method; or "random"
    effect_weight: float = 1.0  # 0: a direction may be as weak as it likes
    target: float = 1.5  # standard deviations by which the largest magnitude should raise the attribute
    predictor: str | None = None  # folder or hub id of an image classifier or a CLIP model; None: the model's own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise UserError(f"start: got '{self.start}'; allowed: {', '.join(STARTS)}")
        if (self.micro_batch or self.batch) % 2:
            raise UserError(
                f"micro_batch: got {self.micro_batch or self.batch}; effects are averaged over pairs of samples: give "
                "an even number"
            )
        if not (math.isfinite(self.effect_weight) and self.effect_weight >= 0):
            raise UserError(f"effect_weight: got {self.effect_weight}; it must be a finite number of at least 0")
        if not (math.isfinite(self.target) and self.target > 0):
            raise UserError(f"target: got {self.target}; it must be a finite number above 0")
        refuse_repeated(self.attributes)


class Found(NamedTuple):
    """What is found on the pool before training: the start of the directions, and the scores of the samples."""

    start: Tensor | None
    scores: Tensor  # [P, A], of the unshifted samples, in the precision of the chain
    deviation: Tensor  # [A], their standard deviation; infinite for an attribute that does not vary and has no unit


class Learner(ChainLearner[Settings, HasShift]):
    """A run of the guided method; see `ChainLearner`.

    attributes: the predictor; without it that of settings.predictor, or the model's own. Raises UserError where there
    is none, where it is not differentiable, and where it lacks an attribute or one does not vary.
    """

    method = "guided"

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        settings: Settings,
        workers: Workers = Workers(),  # noqa: B008  # frozen
        draw_batch: int = 64,
        cache: SampleCache | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        self.attributes = predictor_of(attributes, settings.predictor, denoiser)
        refuse_undifferentiable(self.attributes)
        self.names = settings.attributes or self.attributes.names
        self.columns = [self.attributes.index(name) for name in self.names]
        super().__init__(denoiser, schedule, settings, workers, draw_batch, cache)

    @property
    def count(self) -> int:
        """The number of directions."""
        return len(self.names)

    def _score(self, images: Tensor) -> Tensor:
        """Return the scores [N, A] of images, differentiable, on the denoiser's device."""
        assert self.attributes.score_through is not None  # refused in __init__
        return self.attributes.score_through(images).to(self.denoiser.device)

    def _found(self, pool: Pool, h: Tensor) -> Found:
        settings = self.settings
        parts = torch.split(pool.x_0.to(self.denoiser.device), self.draw_batch)
        scores = scores_of(self._score, (self.denoiser.images(part) for part in parts))
        for column, name in enumerate(self.attributes.names):
            refuse_useless_scores(scores[:, column], name, may_be_constant=column not in self.columns)
        deviation = scores.std(dim=0, correction=0)
        start = None
        if settings.start == "supervised":
            start = differences_of_means(h, scores[:, self.columns], settings.parametrisation)
        deviation = torch.where(deviation > 0, deviation, torch.inf).to(self.denoiser.chain_dtype)
        if settings.start == "slopes":
            start = self._pure_start(pool, h, deviation.to(self.denoiser.device))
        return Found(start, scores.to(deviation), deviation)

    def _pure_start(self, pool: Pool, h: Tensor, deviation: Tensor) -> Tensor:
        """Return the shortest shifts that change the score of one attribute and keep those of all others."""
        order = [*self.columns, *(each for each in range(len(self.attributes.names)) if each not in self.columns)]
        varying = [column for column in order if torch.isfinite(deviation[column])]

        def scores(seen: Seen) -> Tensor:
            return (self._score(self._pictures(seen)) / deviation)[:, varying]

        return pure_directions(self._slopes(pool, spread_of(h), scores), self.count, self.count)

    def _make_explorer(self, spread: Tensor, found: Found) -> HasShift:
        device = self.denoiser.device
        self.unshifted, self.deviation = found.scores.to(device), found.deviation.to(device)
        return HasShift(self._shift_control(spread, found.start))

    def _loss(self, plain: Seen, shifted: Seen, k: Tensor, magnitude: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        unshifted = self.unshifted[plain.rows.to(self.unshifted.device)]
        change = (self._score(self._pictures(shifted)).to(unshifted) - unshifted) / self.deviation
        own = torch.tensor(self.columns, device=k.device)[k[0::2]]
        effect = losses.effects(change, magnitude)
        share = losses.share_loss(effect, own)
        strong = losses.effect_loss(effect, own, magnitude, settings.target)
        values = {"share_loss": share.item(), "effect_loss": strong.item()}
        return share + settings.effect_weight * strong, values


def refuse_undifferentiable(attributes: Attributes) -> None:
    """Raise UserError where no gradient comes back from the scores to the images."""
    if not attributes.differentiable:
        raise UserError(
            "predictor: no gradient comes back from its scores; give one with score_through, or an image classifier "
            "whose processor does nothing but resize, crop, rescale and normalise (method supervised takes any)"
        )


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    attributes: Attributes | None = None,
    batch: int = 64,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Train one direction for each attribute, named after it, in this process.

    attributes: a predictor that replaces the one of settings.predictor. progress: called as progress(n, terms) after
    every iteration. batch: unshifted samples drawn and scored at a time before the first iteration; cache: where they
    are read and kept. Raises what `Learner` raises.
    """
    learner = Learner(denoiser, schedule, settings, draw_batch=batch, cache=cache, attributes=attributes)
    return trained(learner, progress)
