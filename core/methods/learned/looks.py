"""What the reconstructor, and the comparison of two samples, see of a sample.

    pixels      the sample itself, as judges get it
    denoiser    the frozen denoiser's maps of it (core.chain.sample_maps), as a grid of means
    another     the features of a vision model, frozen too: SliderSpace (arXiv 2502.01639) looks through CLIP

Maps and features are taken in units of each channel over unshifted samples, so that no channel outweighs the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.errors import UserError
from core.methods.sources import DENOISER, deviation_of
from core.methods.trained.discriminator import map_channels
from core.model.denoiser import Denoiser
from core.predictors.vision import Extractor, open_vision

PIXELS = "pixels"
GRID = 8  # the denoiser's maps become grids of GRID x GRID means
UNIT_SAMPLES = 256  # unshifted samples on which units are measured


@dataclass(frozen=True)
class Units:
    """The mean and the standard deviation of each channel of what is seen, both [C, 1, 1]."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, seen: Tensor) -> "Units":
        """Measure the units on what is seen of unshifted samples, [N, C, H, W]."""
        values = seen.float().transpose(0, 1).flatten(1)  # [C, N * H * W]
        return cls(values.mean(dim=1)[:, None, None], deviation_of(values.T, 0.01)[:, None, None])

    def to(self, device: torch.device | str) -> "Units":
        """Return the units on `device`."""
        return Units(self.mean.to(device), self.deviation.to(device))

    def __call__(self, seen: Tensor) -> Tensor:
        """Return what is seen of samples [N, C, H, W] in these units; float32."""
        return (seen.float() - self.mean) / self.deviation


def open_look(look: str, device: torch.device | str = "cpu") -> Extractor | None:
    """Open the vision model of a look; None for the others.

    Raises ModelError where it cannot be read, UserError where no gradient goes through it.
    """
    if look in (PIXELS, DENOISER):
        return None
    vision = open_vision(look, "look", device)
    refuse_undifferentiable(vision, look)
    return vision


def refuse_undifferentiable(vision: Extractor, look: str) -> None:
    """Raise UserError where no gradient comes back from the features to the images."""
    if vision.embed_through is None:
        raise UserError(
            f"look: no gradient comes back from what '{look}' sees; give a vision model whose processor does nothing "
            "but resize, crop, rescale and normalise, or denoiser (method semantic takes any)"
        )


def seen_in(maps: Sequence[Tensor]) -> Tensor:
    """Return the maps [N, C, H, W] of samples as one, of GRID x GRID means: [N, sum of C, GRID, GRID], float32."""
    return torch.cat([adaptive_avg_pool2d(each.float(), GRID) for each in maps], dim=1)


def shape_seen(denoiser: Denoiser, look: str, features: int) -> tuple[int, int, int]:
    """Return the shape [C, H, W] of what is seen of a sample. features: the number that a vision model gives."""
    if look == PIXELS:
        return denoiser.judged_shape
    return (sum(map_channels(denoiser)), GRID, GRID) if look == DENOISER else (features, 1, 1)
