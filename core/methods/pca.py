"""Find the principal components of h over unshifted samples (Haas et al., arXiv 2303.11073).

Nothing is trained: the editing directions are the directions in which h varies most. There are two forms:

    joint      one PCA of the whole code h_{T:1}, [N, T*C*H*W]; a component has a direction and a length for each step
    per step   a PCA of h_t at every step; components of neighbouring steps are then matched to each other
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.directions.provenance import provenance
from core.errors import NonFiniteError, UserError
from core.methods.setting_checks import refuse_below, refuse_few_samples, refuse_no_length
from core.model.denoiser import Denoiser
from core.samples.cache import SampleCache
from core.samples.draw import draw_h
from core.samples.training import training_seeds
from core.statistics.principal_components import Components, RunningComponents, matched, store_height


@dataclass(frozen=True)
class Settings:
    """The settings of the method.

    samples: number of samples of which the components are taken; joint: one PCA over all steps, else one at each step.
    sigmas: length of the shift at scale 1.0, in standard deviations along the component.
    """

    directions: int = 16
    samples: int = 1024
    joint: bool = True
    sigmas: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_below(self, directions=1, seed=0)
        refuse_few_samples(self.samples, self.directions, "components")
        refuse_no_length(self.sigmas)


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Find the K components of most variance, sigma[k, s] = `sigmas` standard deviations of h_s along the component.

    batch: samples drawn at a time; cache: where they are read and kept. Signs are arbitrary but repeatable. Where h
    does not vary at a step, sigma is 0 and the direction there is arbitrary.
    Raises UserError where h has fewer dimensions than `settings.directions` (before a sample is drawn) or varies in
    fewer, NonFiniteError where h is NaN or infinite.
    """
    form = _joint if settings.joint else _per_step
    vectors, deviations = form(denoiser, schedule, settings, batch, cache)
    varying = int((deviations.sum(1) > 0).sum())
    if varying < settings.directions:
        raise UserError(
            f"directions: got {settings.directions}; h of model '{denoiser.name}' varies in {varying} dimensions over "
            f"{settings.samples} samples"
        )
    return DirectionSet(
        vectors.reshape(*vectors.shape[:2], *denoiser.h_shape).float().cpu(),
        (settings.sigmas * deviations).float().cpu(),
        schedule.timesteps,
        provenance=provenance("pca", denoiser, schedule, asdict(settings)),
    )


def _joint(
    denoiser: Denoiser, schedule: Schedule, settings: Settings, batch: int, cache: SampleCache | None
) -> tuple[Tensor, Tensor]:
    """Return unit vectors [K, T, D] and deviations [K, T] of the joint components.

    The part of component k at step s is deviations[k, s] * vectors[k, s].
    """
    (whole,) = _components(denoiser, schedule, settings, settings.directions, batch, cache)
    parts = whole.vectors.reshape(settings.directions, len(schedule), -1)  # [K, T, D]
    lengths = parts.norm(dim=2)
    anywhere = torch.eye(1, parts.shape[2]).to(parts)  # a step without a part still needs a unit vector
    vectors = torch.where(lengths[:, :, None] > 0, parts / lengths[:, :, None], anywhere)
    return vectors, whole.deviations[:, None] * lengths


def _per_step(
    denoiser: Denoiser, schedule: Schedule, settings: Settings, batch: int, cache: SampleCache | None
) -> tuple[Tensor, Tensor]:
    """Return unit vectors [K, T, D] and deviations [K, T] of the components of each step, matched through the steps."""
    # Twice as many as requested are matched, so that a component of low variance at some steps is not lost there.
    followed = min(2 * settings.directions, prod(denoiser.h_shape), settings.samples - 1)
    count = max(followed, settings.directions)
    vectors, deviations = follow(_components(denoiser, schedule, settings, count, batch, cache))
    most = deviations.square().sum(1).argsort(descending=True, stable=True)[: settings.directions]
    return vectors[most], deviations[most]


def follow(steps: Sequence[Components]) -> tuple[Tensor, Tensor]:
    """Match the components of neighbouring steps: vectors [M, T, D], deviations [M, T], row m the same component.

    The order of components may change from step to step and their signs are arbitrary. So the components of each step
    are assigned to those of its neighbour with the largest sum of |cos| and get their signs. Only neighbours are
    compared: directions may turn slowly, and those of distant steps have little in common. Matching starts at the step
    of most variance, whose components weigh most in an edit and which keeps its order and signs. The matches do not
    depend on the start.
    """
    vectors = torch.stack([step.vectors for step in steps])  # [T, M, D]
    deviations = torch.stack([step.deviations for step in steps])  # [T, M]
    anchor = int(deviations.square().sum(1).argmax())
    neighbours = [(s - 1, s) for s in range(anchor + 1, len(steps))] + [(s + 1, s) for s in reversed(range(anchor))]
    for done, s in neighbours:
        order, signs = matched(vectors[s], vectors[done])
        vectors[s], deviations[s] = vectors[s, order] * signs[:, None], deviations[s, order]
    return vectors.transpose(0, 1), deviations.T


def _components(
    denoiser: Denoiser, schedule: Schedule, settings: Settings, count: int, batch: int, cache: SampleCache | None
) -> list[Components]:
    """Return `count` components of the whole code (a list of one) or of each step's h, in one pass over the samples."""
    steps, size = len(schedule), prod(denoiser.h_shape)
    stores, width = (1, steps * size) if settings.joint else (steps, size)
    if settings.directions > width:
        code = f"h over {steps} steps" if settings.joint else "h"
        raise UserError(
            f"directions: got {settings.directions}; {code} of model '{denoiser.name}' has {width} dimensions"
        )
    seeds = training_seeds(settings.samples, settings.seed)
    height = store_height(width, count, settings.samples, stores, max(4, denoiser.dtype.itemsize))
    running = [RunningComponents(width, height, denoiser.dtype, denoiser.device) for _ in range(stores)]
    for part in draw_h(denoiser, schedule, seeds, batch, cache):
        _refuse_non_finite(part, denoiser, running[0].rows_added)
        h = part.flatten(2)  # [T, n, D]
        rows = h.transpose(0, 1).flatten(1)[None] if settings.joint else h
        for one, its_rows in zip(running, rows, strict=True):
            one.add(its_rows)
    return [one.components(count) for one in running]


def _refuse_non_finite(h: Tensor, denoiser: Denoiser, before: int) -> None:
    if not torch.isfinite(h).all():
        raise NonFiniteError(
            f"h of model '{denoiser.name}' became NaN or infinite in samples {before} to {before + h.shape[1] - 1}"
        )
