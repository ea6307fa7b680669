"""Sources of variation without labels: numbers that follow a single cause each, read from a sample's maps.

The sources are the flattest projections (core.statistics.projection_pursuit) of the frozen denoiser's maps of unshifted
samples. They are linear in the maps, and the maps are differentiable, so the change of a source by a shift can be
followed back through the whole chain. Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.chain.sample_maps import sample_maps
from core.model.denoiser import Denoiser
from core.statistics.projection_pursuit import flattest_projections

GRID = 4  # each channel becomes a GRID x GRID grid of means
COMPONENTS = 16  # leading components in which sources are searched: in more, chance finds flat projections of noise
MOST = 12  # sources; the flattest of COMPONENTS, since what is left over at the end is a mixture


@dataclass(frozen=True)
class Sources:
    """A linear reading of S sources from maps, each with mean 0 and variance 1 over unshifted samples."""

    mean: Tensor  # [F], of the features
    weights: Tensor  # [F, S]

    def to(self, device: torch.device | str) -> "Sources":
        """Return the reading on `device`."""
        return Sources(self.mean.to(device), self.weights.to(device))

    def read(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sources [N, S] of samples with these maps; float32, differentiable."""
        return (features_of_maps(maps) - self.mean) @ self.weights


def features_of_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return each channel of the maps [N, C, H, W] as a grid of means, in one row: [N, F], float32."""
    return torch.cat([adaptive_avg_pool2d(each.float(), GRID).flatten(1) for each in maps], dim=1)


@torch.no_grad()
def find_sources(
    denoiser: Denoiser, x_0: Tensor, most: int = MOST, batch: int = 64, seed: int = 0
) -> tuple[Sources, Tensor]:
    """Return the sources of these unshifted samples, flattest first, and their values [N, S]; both on the CPU.

    x_0: [N, *sample_shape]; most: the number of sources, fewer where the samples vary in fewer dimensions.
    """
    parts = (sample_maps(denoiser, part.to(denoiser.device)) for part in x_0.split(batch))
    rows = torch.cat([features_of_maps(maps).cpu() for maps in parts])  # [N, F]
    deviation = rows.std(dim=0)
    deviation = deviation.clamp(min=max(0.01 * float(deviation.mean()), 1e-12))
    count = min(most, COMPONENTS, len(rows) - 1, rows.shape[1])
    components = min(COMPONENTS, len(rows) - 1, rows.shape[1])
    mean, weights = flattest_projections(rows / deviation, count, components, seed)
    sources = Sources((mean * deviation).float(), (weights / deviation.double()[:, None]).float())
    return sources, (rows - sources.mean) @ sources.weights
