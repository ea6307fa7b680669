"""Sources of variation without labels: numbers that follow a single cause each, read from features of samples.

The sources are the flattest and most concentrated projections (core.statistics.projection_pursuit) of the features. A
trained method reads them from the frozen denoiser's maps: they are linear in the maps, and the maps are differentiable,
so the change of a source by a shift can be followed back through the whole chain. Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.chain.sample_maps import sample_maps
from core.model.denoiser import Denoiser
from core.statistics.projection_pursuit import pursue

DENOISER = "denoiser"  # what looks at samples, where a vision model could be named
GRID = 4  # each channel of the maps becomes a GRID x GRID grid of means
PLACES = 16  # images (latents, where judges see those) are looked at as PLACES x PLACES means
FIRST = (12, 16)  # the first 12 sources are searched in 16 leading components, the others in all that are read
READ = 32  # leading components that are read


@dataclass(frozen=True)
class Sources:
    """A linear reading of R numbers from features, uncorrelated, of mean 0 and variance 1 over unshifted samples.

    The first `count` are the sources; the others are what else the leading components tell, which belongs to none.
    """

    mean: Tensor  # [F], of the features
    weights: Tensor  # [F, R]
    count: int

    def to(self, device: torch.device | str) -> "Sources":
        """Return the reading on `device`."""
        return Sources(self.mean.to(device), self.weights.to(device), self.count)

    def read(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the numbers [N, R] of samples with these maps; float32, differentiable."""
        return (features_of_maps(maps) - self.mean) @ self.weights


def features_of_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return each channel of the maps [N, C, H, W] as a grid of means, in one row: [N, F], float32."""
    return torch.cat([adaptive_avg_pool2d(each.float(), GRID).flatten(1) for each in maps], dim=1)


@torch.no_grad()
def find_sources(denoiser: Denoiser, x_0: Tensor, count: int, batch: int = 64, seed: int = 0) -> tuple[Sources, Tensor]:
    """Return the sources of these unshifted samples, best first, and what they read in them [N, R]; both on the CPU.

    x_0: [N, *sample_shape]; count: the number of sources, at most the dimensions in which samples vary;
    more than READ are looked for in as many components.
    """
    features, places = [], []
    for part in torch.split(x_0, batch):
        on_device = part.to(denoiser.device)
        features.append(features_of_maps(sample_maps(denoiser, on_device)).cpu())
        places.append(places_of(denoiser.for_judges(on_device)))
    return sources_in(torch.cat(features), torch.cat(places), count, seed)


def places_of(seen: Tensor) -> Tensor:
    """Return images or latents [N, C, H, W] as means over places: [N, C, PLACES * PLACES], float32, on the CPU."""
    return adaptive_avg_pool2d(seen.float(), PLACES).flatten(2).cpu()


def sources_in(features: Tensor, places: Tensor, count: int, seed: int = 0) -> tuple[Sources, Tensor]:
    """Return the sources of samples with these features, and what they read in them [N, R].

    features: [N, F]; places: of the same samples, as `places_of` gives them; count: as of `find_sources`.
    """
    deviation = deviation_of(features, 0.01)
    places = (places - places.mean(dim=0)) / deviation_of(places, 0.1)
    kept = min(max(READ, count), len(features) - 1, features.shape[1])
    first, components = FIRST
    stages = ((min(count, first), min(components, kept)), (max(count - first, 0), kept))
    found = pursue(features / deviation, places, stages, kept, seed)
    mean, weights = found.mean * deviation.double(), found.weights / deviation.double()[:, None]
    sources = Sources(mean.float(), weights.float(), found.pursued)
    return sources, (features - sources.mean) @ sources.weights


def deviation_of(values: Tensor, least: float) -> Tensor:
    """Return the standard deviation of each column of values [N, ...], at least `least` of the average one."""
    deviation = values.std(dim=0)
    return deviation.clamp(min=max(least * float(deviation.mean()), 1e-12))
