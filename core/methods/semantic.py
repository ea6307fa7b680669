"""Find the shifts of h that go with what a network sees in samples, without labels; nothing is trained.

A frozen network looks at unshifted samples: the denoiser itself, through its feature maps, or any vision model. What
varies most in its features, or in the flattest way (core.methods.sources), are sources of variation, without labels.
Each direction is the regression of h on one source, at every step:

    n_k,t = sum over samples of s_k (h_t - mean h_t) / sum of s_k^2         s_k: source k, of mean 0 and variance 1

which is the change of h that goes with one standard deviation of the source. After SliderSpace (Gandikota et al., arXiv
2502.01639), which takes principal components of CLIP's features and trains an adapter for each; the regression and the
flattest projections are ours.
"""

from dataclasses import asdict, dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from core.chain.sample_maps import sample_maps
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet, units
from core.directions.provenance import provenance
from core.errors import NonFiniteError, UserError
from core.methods.setting_checks import refuse_below, refuse_few_samples, refuse_no_length
from core.methods.sources import DENOISER, deviation_of, features_of_maps, places_of, sources_in
from core.model.denoiser import Denoiser
from core.predictors.vision import Extractor, open_vision
from core.samples.cache import SampleCache
from core.samples.draw import IMAGES, H, draw, weighted_h
from core.samples.training import training_seeds
from core.statistics.principal_components import principal_components, store_height

Kind = Literal["flattest", "components"]
KINDS = ("flattest", "components")


@dataclass(frozen=True)
class Settings:
    """The settings of the method.

    look: what sees the samples, "denoiser" or the folder or hub id of a vision model; sources: the flattest projections
    of its features, or their principal components; samples: number of samples that are looked at; sigmas: length of the
    shift at scale 1.0, in standard deviations of the source.
    """

    directions: int = 16
    look: str = DENOISER
    sources: Kind = "flattest"
    samples: int = 1024
    sigmas: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_below(self, directions=1, seed=0)
        if self.sources not in KINDS:
            raise UserError(f"sources: got '{self.sources}'; allowed: {', '.join(KINDS)}")
        refuse_few_samples(self.samples, self.directions, "sources")
        refuse_no_length(self.sigmas)


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Find the K shifts of h that go with the sources, sigma[k, t] = `sigmas` ||n_k,t||.

    batch: samples drawn and looked at at a time; cache: where they are read and kept; without one every chain runs
    twice. Signs are arbitrary but repeatable. Raises UserError where h has, or what is seen varies in, fewer dimensions
    than `settings.directions`, ModelError where the vision model cannot be read, NonFiniteError where samples, features
    or h are NaN or infinite.
    """
    _refuse_too_many(denoiser, settings)
    vision = None if settings.look == DENOISER else open_vision(settings.look, "look", denoiser.device)
    features, places = looked_at(denoiser, schedule, settings, vision, batch, cache)
    sources = _sources(features, places, settings)
    if sources.shape[1] < settings.directions:
        raise UserError(
            f"directions: got {settings.directions}; what '{settings.look}' sees of model '{denoiser.name}' varies in "
            f"{sources.shape[1]} dimensions over {settings.samples} samples"
        )
    centred = (sources - sources.mean(dim=0)).double()  # the mean is 0 but for rounding
    weights = (centred / centred.square().sum(dim=0)).T
    shifts = weighted_h(denoiser, schedule, _seeds(settings), weights, batch, cache)
    if not torch.isfinite(shifts).all():
        raise NonFiniteError(f"h of model '{denoiser.name}' became NaN or infinite in its training samples")
    table, length = units(shifts)
    origin = provenance("semantic", denoiser, schedule, asdict(settings))
    return DirectionSet(
        table.float(),
        (settings.sigmas * length).float(),
        schedule.timesteps,
        provenance=origin | ({"seen_by": vision.name} if vision else {}),
    )


@torch.no_grad()
def looked_at(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings,
    vision: Extractor | None = None,
    batch: int = 64,
    cache: SampleCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Return features [N, F] of the samples, and their means over places [N, C, Q]; float32, on the CPU.

    vision: what looks; None: the denoiser. Raises NonFiniteError.
    """
    names = (IMAGES, H) if cache else (IMAGES,)  # h is read from the cache later
    features, places = [], []
    for drawn in draw(denoiser, schedule, _seeds(settings), names, batch, cache):
        x_0 = drawn[IMAGES]
        if not torch.isfinite(x_0).all():
            raise NonFiniteError(f"samples of model '{denoiser.name}' became NaN or infinite")
        judged = denoiser.for_judges(x_0)
        if vision is None:
            features.append(features_of_maps(sample_maps(denoiser, x_0)).cpu())
        else:
            features.append(vision.embed(judged if denoiser.use.space == "pixels" else denoiser.images(x_0)))
        places.append(places_of(judged))
    found = torch.cat(features)
    if not torch.isfinite(found).all():
        raise NonFiniteError(f"look: what '{settings.look}' sees of model '{denoiser.name}' is NaN or infinite")
    return found, torch.cat(places)


def _seeds(settings: Settings) -> range:
    return training_seeds(settings.samples, settings.seed)


def _sources(features: Tensor, places: Tensor, settings: Settings) -> Tensor:
    """Return at most K sources [N, k] of features [N, F], each of mean 0 and variance 1."""
    if settings.sources == "flattest":
        sources, values = sources_in(features, places, settings.directions, settings.seed)
        return values[:, : sources.count]
    rows = features / deviation_of(features, 0.01)
    kept = min(settings.directions, len(rows) - 1, rows.shape[1])
    height = store_height(rows.shape[1], kept, len(rows), itemsize=rows.element_size())
    leading = principal_components([rows], kept, height)
    varying = leading.deviations > 0
    projected: Tensor = (rows.double() - leading.mean) @ leading.vectors[varying].T
    return projected / leading.deviations[varying]


def _refuse_too_many(denoiser: Denoiser, settings: Settings) -> None:
    """Raise UserError where there are fewer dimensions than directions, before a sample is drawn."""
    dimensions = prod(denoiser.h_shape)
    if settings.directions > dimensions:
        raise UserError(
            f"directions: got {settings.directions}; h of model '{denoiser.name}' has {dimensions} dimensions"
        )
