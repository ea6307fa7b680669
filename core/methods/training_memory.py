"""Count the memory of a method that trains beside the chain: its trained parts, its pool, and the drawing of samples.

As in core.chain.step_memory, the modules themselves are run on tensors that have a shape but no data.
"""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn import Module

from core.chain.sample_maps import sample_maps
from core.chain.schedule import Schedule
from core.chain.step import one_step
from core.chain.step_memory import counting_memory
from core.methods.guided.training import Settings as GuidedSettings
from core.methods.learned.looks import PIXELS, seen_in, shape_seen
from core.methods.learned.losses import consistency_loss, locality_loss
from core.methods.learned.reconstructor import Reconstructor
from core.methods.learned.training import Settings, ShiftAndReconstructor
from core.methods.sources import DENOISER, features_of_maps
from core.methods.trained.chain_learner import HasShift
from core.methods.trained.discriminator import Discriminator, map_channels
from core.methods.trained.shift_control import ShiftControl
from core.methods.trained.training_settings import TrainingSettings
from core.model.denoiser import Denoiser

MANY_ATTRIBUTES = 64  # of a predictor whose number is not known
MANY_FEATURES = 1024  # of a vision model


@lru_cache(maxsize=64)
def trained_bytes(
    denoiser: Denoiser, schedule: Schedule, settings: TrainingSettings, micro_batch: int, optimiser_bytes: int = 8
) -> int:
    """Return the peak bytes of the trained parts and their losses on `micro_batch` samples, forward and backward.

    Parts are float32. optimiser_bytes: held for each parameter beside itself and its gradient; Adam's moments are 8.
    Where a predictor or a vision model looks at samples, the images are counted, but not the network, which
    core.predictors.memory counts. Where the attributes are all of a predictor, MANY_ATTRIBUTES count, and a vision
    model counts as one with MANY_FEATURES.
    """
    explorer, discriminator = _parts(denoiser, schedule, settings)
    modules = _trained(explorer, discriminator, settings)
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    x_0, shifted_x_0 = _samples(denoiser, micro_batch), _samples(denoiser, micro_batch).requires_grad_()
    k = torch.zeros(micro_batch, dtype=torch.long, device="meta")
    magnitude = torch.empty(micro_batch, device="meta")
    with torch.enable_grad(), counting_memory([*own, *denoiser.tensors(), x_0, shifted_x_0, k, magnitude]) as counter:
        images, shifted = denoiser.for_judges(x_0), denoiser.for_judges(shifted_x_0)
        shift = explorer.shift.at(k, magnitude)
        loss = torch.stack([shift(i).sum() for i in range(len(schedule))]).sum()
        if isinstance(settings, Settings) and settings.locality_weight > 0:
            loss = loss + locality_loss(images, shifted, magnitude)
        maps, shifted_maps = _maps(denoiser, settings, x_0), _maps(denoiser, settings, shifted_x_0)
        if isinstance(settings, Settings) and settings.finds_sources:
            loss = loss + features_of_maps(shifted_maps).sum()
        if isinstance(settings, GuidedSettings) or has_vision(settings):
            pictures = shifted if denoiser.use.space == "pixels" else denoiser.images(shifted_x_0)
            loss = loss + pictures.sum()
        if isinstance(explorer, ShiftAndReconstructor) and isinstance(settings, Settings):
            seen, shifted_seen = (_seen(settings, *each) for each in ((images, maps), (shifted, shifted_maps)))
            logits, strength = explorer.reconstructor(seen, shifted_seen)
            loss = loss + logits.sum() + strength.sum()
            if settings.consistency_weight > 0:
                loss = loss + consistency_loss(seen, shifted_seen, magnitude)
        if settings.discriminator_weight > 0:
            loss = loss + discriminator(images, maps).sum() + discriminator(shifted, shifted_maps).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own stub
    held: int = sum(tensor.nbytes for tensor in own) + counter.peak
    return held + optimiser_bytes * count


@lru_cache(maxsize=64)
def trained_count(denoiser: Denoiser, schedule: Schedule, settings: TrainingSettings) -> int:
    """Return the number of trained parameters."""
    modules = _trained(*_parts(denoiser, schedule, settings), settings)
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _maps(denoiser: Denoiser, settings: TrainingSettings, x_0: Tensor) -> list[Tensor]:
    """Return the maps of samples that something looks at."""
    looked_at = isinstance(settings, Settings) and (settings.finds_sources or settings.look == DENOISER)
    return sample_maps(denoiser, x_0) if settings.discriminator_weight > 0 or looked_at else []


def has_vision(settings: TrainingSettings) -> bool:
    """Return whether a vision model looks at what is trained on."""
    return isinstance(settings, Settings) and settings.look not in (PIXELS, DENOISER)


def _seen(settings: Settings, images: Tensor, maps: list[Tensor]) -> Tensor:
    """Return what the reconstructor sees of samples with these images and maps, in units as large as itself."""
    if settings.look == PIXELS:
        return images
    if settings.look == DENOISER:
        return 1 * seen_in(maps)
    return images.flatten(1)[:, :1].expand(-1, MANY_FEATURES)[:, :, None, None].float()


def directions_of(settings: TrainingSettings) -> int:
    """Return how many directions a method trains, as far as its settings say."""
    if isinstance(settings, Settings):
        return settings.directions
    return len(settings.attributes if isinstance(settings, GuidedSettings) else ()) or MANY_ATTRIBUTES


def pool_bytes(denoiser: Denoiser, settings: TrainingSettings) -> int:
    """Return the bytes of the pool's samples and of the states from which their chains start."""
    return 2 * int(_samples(denoiser, settings.pool).nbytes)


def pool_h_bytes(denoiser: Denoiser, schedule: Schedule, settings: TrainingSettings) -> int:
    """Return the bytes of the h of the pool's chains, from which the directions start: float32, in the CPU's memory."""
    return 4 * settings.pool * len(schedule) * prod(denoiser.h_shape)


@lru_cache(maxsize=64)
@torch.no_grad()
def drawing_bytes(denoiser: Denoiser, schedule: Schedule, batch: int) -> int:
    """Return the peak bytes of drawing `batch` samples at a time, without the weights.

    This counts a step with two passes through the decoder, the h of every step, and the noise where steps add some.
    """
    x = _samples(denoiser, batch)
    h = torch.empty(batch, *denoiser.h_shape, dtype=denoiser.dtype, device="meta")
    with counting_memory(denoiser.tensors()) as counter:
        one_step(denoiser, schedule, len(schedule) - 1, x, h, "asymmetric")
    noises = len(schedule) * x.nbytes if schedule.stochastic else 0
    held: int = counter.peak + x.nbytes + noises
    return held + 2 * len(schedule) * h.nbytes  # twice: as a list, and as the tensor stacked from it


def _parts(denoiser: Denoiser, schedule: Schedule, settings: TrainingSettings) -> tuple[HasShift, Discriminator]:
    """Return the trained modules without data, on the meta device.

    The discriminator is made with data first: without, its spectral norms' power iterations take seconds.
    """
    count = directions_of(settings)
    steps = len(schedule) if settings.parametrisation == "per_step" else 1
    with torch.random.fork_rng(devices=[]):
        discriminator = Discriminator(denoiser.judged_shape, map_channels(denoiser))
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        shift = ShiftControl(
            count,
            denoiser.h_shape,
            torch.empty(len(schedule)),
            schedule.timesteps,
            settings.parametrisation,
            settings.orthonormal,
            torch.empty(count, steps, prod(denoiser.h_shape)),
        )
        explorer = HasShift(shift)
        if isinstance(settings, Settings):
            shape = shape_seen(denoiser, settings.look, MANY_FEATURES)
            explorer = ShiftAndReconstructor(shift, Reconstructor(shape, count))
    return explorer.to("meta").eval(), discriminator.to("meta")


def _trained(explorer: HasShift, discriminator: Discriminator, settings: TrainingSettings) -> list[Module]:
    """Return the parts that train; without a weight the discriminator does not."""
    return [explorer, discriminator] if settings.discriminator_weight > 0 else [explorer]


def _samples(denoiser: Denoiser, count: int) -> Tensor:
    dtype = denoiser.chain_dtype
    return torch.empty(count, *denoiser.sample_shape, dtype=dtype, device="meta")
