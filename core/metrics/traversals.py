"""Traversals: every direction of a set, at a few scales, on the same few samples. All metrics read these images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.chain.sampling import Shift, sample, start_of
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import DirectionSetError, UserError
from core.model.denoiser import Denoiser
from core.progress import advanced
from core.samples.cache import SampleCache
from core.samples.draw import Sampling, draw_images

SCALES = (-1.0, -0.5, 0.5, 1.0)


def _unchanged(samples: Tensor) -> Tensor:
    return samples


@dataclass(frozen=True)
class Traversals:
    """M samples, unshifted and shifted by each of K directions at A scales; on the CPU.

    The samples of a latent model are latents. `images` decodes them: [N, *sample_shape] -> [N, *image_shape], in about
    [-1, 1].
    """

    plain: Tensor  # [M, *sample_shape]
    shifted: Tensor  # [M, K, A, *sample_shape]
    scales: tuple[float, ...]  # [A], units of sigma; ascending, symmetric about 0, without 0
    images: Callable[[Tensor], Tensor] = _unchanged

    @property
    def positive(self) -> Tensor:
        """The samples at the largest scale: [M, K, *sample_shape]."""
        return self.shifted[:, :, -1]

    @property
    def negative(self) -> Tensor:
        """The samples at the smallest (most negative) scale: [M, K, *sample_shape]."""
        return self.shifted[:, :, 0]


@torch.no_grad()
def draw_traversals(
    denoiser: Denoiser,
    schedule: Schedule,
    directions: DirectionSet,
    seeds: Sequence[int],
    scales: Sequence[float] = SCALES,
    sampling: Sampling = Sampling(),
) -> Traversals:
    """Draw the traversals of a set: len(seeds) * (1 + K * A) images.

    All shifts of a seed share its x_T and, where steps add noise, its z_t.

    Raises UserError where the scales are not ascending, symmetric and without 0; DirectionSetError where the set does
    not fit the model or the chain.
    """
    scales = tuple(float(scale) for scale in scales)
    _check(denoiser, schedule, directions, scales)
    on_device = directions.to(denoiser.device)
    k, scale = torch.arange(len(directions)), torch.tensor(scales, dtype=torch.float64)
    triples = torch.cartesian_prod(torch.arange(len(seeds)), k, torch.arange(len(scales)))  # [M*K*A, 3]
    images = []
    for part in torch.split(triples, sampling.batch):
        shift = on_device.shift(part[:, 1], scale[part[:, 2]])
        drawn = [seeds[m] for m in part[:, 0].tolist()]
        images.append(_draw(denoiser, schedule, drawn, shift, sampling))
        advanced("images", sum(map(len, images)), len(triples))
    shifted = torch.cat(images).reshape(len(seeds), len(directions), len(scales), *denoiser.sample_shape)
    plain = draw_plain(denoiser, schedule, seeds, sampling.batch, sampling.cache)
    return Traversals(plain, shifted, scales, shown_by(denoiser))


def shown_by(denoiser: Denoiser) -> Callable[[Tensor], Tensor]:
    """Return the function that turns samples on the CPU into images on the CPU."""
    if denoiser.codec is None:
        return _unchanged

    @torch.no_grad()
    def images(samples: Tensor) -> Tensor:
        return denoiser.images(samples.to(denoiser.device)).cpu()

    return images


def draw_plain(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Tensor:
    """Return unshifted samples [len(seeds), *sample_shape], on the CPU."""
    return torch.cat([images.cpu() for images in draw_images(denoiser, schedule, seeds, batch, cache)])


def _draw(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], shift: Shift, sampling: Sampling) -> Tensor:
    start = start_of(denoiser, schedule, seeds)
    x_0 = sample(
        start.denoiser,
        schedule,
        start.x_T,
        shift,
        sampling.injection,
        window=sampling.window,
        step_noise=start.step_noise,
    )
    return x_0.cpu()


def _check(denoiser: Denoiser, schedule: Schedule, directions: DirectionSet, scales: tuple[float, ...]) -> None:
    symmetric = all(low == -high for low, high in zip(scales, reversed(scales), strict=True))
    ascending = all(low < high for low, high in zip(scales, scales[1:], strict=False))
    if not scales or 0.0 in scales or not symmetric or not ascending:
        raise UserError(
            f"scales: got {list(scales)}; allowed: ascending, symmetric about 0, without 0, such as {list(SCALES)}"
        )
    if directions.h_shape != denoiser.h_shape:
        shape = list(denoiser.h_shape)
        raise DirectionSetError(f"the set is for h of {list(directions.h_shape)}; model '{denoiser.name}' has {shape}")
    if directions.table.shape[1] > 1 and directions.timesteps != schedule.timesteps:
        raise DirectionSetError(
            f"the set has one direction for each of the timesteps {list(directions.timesteps)}; "
            f"this chain has {list(schedule.timesteps)}"
        )
