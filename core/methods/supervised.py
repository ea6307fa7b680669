"""Find supervised directions: the difference of mean h between images that have an attribute and images that lack it.

After Haas et al., arXiv 2303.11073, section 3.3 (who follow InterFaceGAN, arXiv 2005.09635), for each attribute:

    n = mean h(most) - mean h(least)            over all steps: [T, C, H, W]
    n' = n - C^T (C C^T)^-1 C n                 with `project`; the rows of C are the other attributes' n

The images are the samples of the model with the highest and lowest scores of a predictor, or labelled pairs of real
images, which are inverted first. Samples are drawn twice: all of them for their scores, then the chosen ones for their
h; only sums of h are kept.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from core.chain.sampling import invert, trajectory
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet, units
from core.directions.provenance import provenance
from core.errors import UserError
from core.methods.attribute_scores import predictor_of, refuse_repeated, refuse_useless_scores, scores_of
from core.model.denoiser import Denoiser
from core.pictures.images import load_pairs
from core.predictors.attributes import Attributes
from core.samples.cache import SampleCache
from core.samples.draw import draw_images, weighted_h
from core.samples.training import training_seeds


@dataclass(frozen=True)
class Settings:
    """The settings of the method. With `pairs`, no sample is drawn and no predictor is used."""

    attributes: tuple[str, ...] = ()  # empty: all attributes of the predictor or of the pairs
    samples: int = 1024  # number of samples that are drawn and scored
    extremes: int = 100  # number of samples in each of the two groups
    balance: str | None = None  # an attribute whose upper and lower half have equal shares in both groups
    project: bool = False  # project all other directions out of each direction
    pairs: str | None = None  # folder of real images, ATTRIBUTE/{negative,positive}/*
    predictor: str | None = None  # folder or hub id of an image classifier; None: the model's own
    scale: float = 1.0  # length of the shift at scale 1.0, in units of the distance between the groups' means
    seed: int = 0

    def __post_init__(self) -> None:
        if self.extremes < 1 or 2 * self.extremes > self.samples:
            raise UserError(
                f"extremes: got {self.extremes}; two groups of them are taken from {self.samples} samples, "
                f"allowed: 1 to {self.samples // 2}"
            )
        if self.balance is not None and self.extremes % 2:
            raise UserError(f"extremes: got {self.extremes}; with balance, half of them come from each half: even only")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UserError(f"scale: got {self.scale}; it must be a finite number above 0")
        if self.project and len(self.attributes) == 1:
            raise UserError(f"project: '{self.attributes[0]}' is the only attribute; at least 2 are needed")
        refuse_repeated(self.attributes)
        for name, value in (("balance", self.balance), ("predictor", self.predictor)):
            if self.pairs is not None and value is not None:
                raise UserError(f"{name}: got '{value}'; pairs are labelled, give either {name} or pairs")


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    attributes: Attributes | None = None,
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Find one direction for each attribute, named after it, with its own vector at every step.

    attributes: a predictor that replaces the one of settings.predictor; not used with settings.pairs.
    batch: samples drawn at a time; cache: where they are read and kept.
    Memory: the h of `batch` samples over all steps, and [A, T, *h_shape] float64 numbers.
    Raises UserError where the model has no predictor, it lacks an attribute, or an attribute does not vary.
    """
    if settings.pairs is not None:
        names, difference = _of_pairs(denoiser, schedule, settings, batch)
    else:
        otherwise = ", or labelled pairs of images"
        attributes = predictor_of(attributes, settings.predictor, denoiser, otherwise)
        names, difference = _of_samples(denoiser, schedule, settings, attributes, batch, cache)
    directions = _as_set(denoiser, schedule, settings, names, difference)
    return projected(directions) if settings.project else directions


def extremes_of(score: Tensor, count: int, balance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the numbers of the `count` samples with least and of the `count` samples with most of an attribute.

    score: [N], the scores of the attribute. balance: [N], the scores of a second attribute; each group then takes half
    of its members from the samples above the median of `balance` and half from the others, the most extreme of both.
    Raises UserError where ties leave too few samples on one side.
    """
    if balance is None:
        order = score.argsort(stable=True)
        return order[:count], order[-count:]
    above = balance > balance.median()
    sides = [side.nonzero().flatten() for side in (~above, above)]
    smallest = min(len(side) for side in sides)
    if smallest < count:
        raise UserError(
            f"balance: too many samples share its median score, which leaves {smallest} on one side of it; "
            f"{count} are needed"
        )
    groups = [extremes_of(score[side], count // 2) for side in sides]
    least, most = (torch.cat([side[group[end]] for side, group in zip(sides, groups, strict=True)]) for end in (0, 1))
    return least, most


@torch.no_grad()
def mean_h(denoiser: Denoiser, schedule: Schedule, images: Tensor, batch: int = 64) -> Tensor:
    """Return the mean over images [N, *image_shape] of the h of their chains: [T, *h_shape], float64, on the CPU.

    Every image is inverted, and h is read along the unshifted chain from the resulting x_T.
    Raises UserError where the chain is not deterministic.
    """
    dtype = denoiser.chain_dtype
    total = torch.zeros(len(schedule), *denoiser.h_shape, dtype=torch.float64)
    for part in torch.split(images, batch):
        x_T = invert(denoiser, schedule, denoiser.x_0(part.to(denoiser.device, dtype)))
        _, h = trajectory(denoiser, schedule, x_T)
        total += h.double().cpu().sum(dim=1)
    return total / len(images)


def projected(directions: DirectionSet) -> DirectionSet:
    """Return the set with all other directions, as found, projected out of each direction (Haas et al., section 3.3).

    The result of each is orthogonal to the others as found, not to the results of the others.
    Raises DirectionSetError where the others span a direction.
    """
    table, sigma = directions.table.clone(), directions.sigma.clone()
    for k in range(len(directions)):
        left = directions.without(k, [other for other in range(len(directions)) if other != k])
        table[k], sigma[k] = left.table[k], left.sigma[k]
    return replace(directions, table=table, sigma=sigma, metrics={})


def _of_samples(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings,
    attributes: Attributes,
    batch: int,
    cache: SampleCache | None,
) -> tuple[tuple[str, ...], Tensor]:
    """Return (names, differences of mean h [A, T, *h_shape]) of the samples with the most extreme scores."""
    names = tuple(settings.attributes) or attributes.names
    columns = [attributes.index(name) for name in names]
    balance = None if settings.balance is None else attributes.index(settings.balance)
    _refuse_lonely_projection(settings, names)
    seeds = training_seeds(settings.samples, settings.seed)
    drawn = draw_images(denoiser, schedule, seeds, batch, cache)
    scores = scores_of(attributes.score, (denoiser.images(x_0) for x_0 in drawn))
    weights = torch.zeros(len(names), len(seeds), dtype=torch.float64)
    for column in columns if balance is None else [*columns, balance]:
        refuse_useless_scores(scores[:, column], attributes.names[column])
    for row, column in zip(weights, columns, strict=True):
        # An attribute balanced by itself would lose the difference that is measured.
        other = None if balance is None or balance == column else scores[:, balance]
        least, most = extremes_of(scores[:, column], settings.extremes, other)
        row[least], row[most] = -1 / settings.extremes, 1 / settings.extremes
    return names, weighted_h(denoiser, schedule, seeds, weights, batch, cache)


def _of_pairs(denoiser: Denoiser, schedule: Schedule, settings: Settings, batch: int) -> tuple[tuple[str, ...], Tensor]:
    """Return (names, differences of mean h [A, T, *h_shape]) of labelled pairs of real images."""
    assert settings.pairs is not None
    pairs = load_pairs(settings.pairs, denoiser.image_shape, settings.attributes)
    _refuse_lonely_projection(settings, tuple(pairs))
    # There are as many negative as positive images, so the mean difference of the pairs is the difference of the means.
    differences = [
        mean_h(denoiser, schedule, positive, batch) - mean_h(denoiser, schedule, negative, batch)
        for negative, positive in pairs.values()
    ]
    return tuple(pairs), torch.stack(differences)


def _as_set(
    denoiser: Denoiser, schedule: Schedule, settings: Settings, names: tuple[str, ...], difference: Tensor
) -> DirectionSet:
    """Return the set of the differences [A, T, *h_shape]: sigma is their length at each step times settings.scale."""
    table, length = units(difference)
    for name, total in zip(names, length.sum(dim=1), strict=True):
        if total == 0:
            raise UserError(f"attribute '{name}': its two groups of images have the same h")
    dtype = denoiser.chain_dtype
    return DirectionSet(
        table.to(dtype),
        (settings.scale * length).to(dtype),
        schedule.timesteps,
        names,
        provenance=provenance("supervised", denoiser, schedule, asdict(settings)),
    )


def _refuse_lonely_projection(settings: Settings, names: tuple[str, ...]) -> None:
    if settings.project and len(names) < 2:
        raise UserError(f"project: '{names[0]}' is the only attribute; at least 2 are needed")
