"""Draw unshifted samples and the h of their chains, with an optional cache that all processes share.

Unshifted samples depend only on the frozen model, the schedule and the seeds, so they can be shared. A sample is the
same with and without a cache: bit by bit where `batch` divides the cache's `block`, else up to rounding.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from core.chain.sampling import start_of
from core.chain.schedule import Schedule
from core.chain.step import Injection
from core.model.denoiser import Denoiser
from core.progress import advanced
from core.samples.cache import Entry, SampleCache

IMAGES = "x_0"
H = "h"
_FORMAT = 2  # increase it whenever the samples of an unchanged key change


@dataclass(frozen=True)
class Sampling:
    """How the samples of a set are drawn.

    injection, window: how and within which training timesteps [high, low] they are shifted; batch: samples at a time,
    which changes nothing beyond rounding; cache: where unshifted samples are read and kept.
    """

    injection: Injection = "symmetric"
    window: tuple[int, int] | None = None
    batch: int = 64
    cache: SampleCache | None = None


def before_step(i: int) -> str:
    """Return the name of the state x_t before step i, for `names` of `draw`."""
    return f"before_step_{i}"


def draw_images(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Iterator[Tensor]:
    """Yield x_0 of the samples with these seeds, `batch` at a time: [N, *sample_shape], on the denoiser's device.

    For a latent model these are latents, which `denoiser.images` decodes.
    """
    return (drawn[IMAGES] for drawn in draw(denoiser, schedule, seeds, (IMAGES,), batch, cache))


def draw_h(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Iterator[Tensor]:
    """Yield h of the samples with these seeds, `batch` at a time: [T, N, *h_shape], on the denoiser's device."""
    return (drawn[H] for drawn in draw(denoiser, schedule, seeds, (H,), batch, cache))


@torch.no_grad()
def draw(
    denoiser: Denoiser,
    schedule: Schedule,
    seeds: Sequence[int],
    names: Sequence[str],
    batch: int = 64,
    cache: SampleCache | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the named tensors of the unshifted chains of `seeds`, `batch` chains at a time, on the denoiser's device.

    Memory does not grow with the number of seeds.
    names: IMAGES for x_0 [N, *sample_shape], H for h [T, N, *h_shape], `before_step(i)` for a state [N, *sample_shape].
    cache: where the tensors are read, and kept once drawn, unless all of them would fill too much of the cache.
    """
    drawn = _Drawn(len(seeds))
    if cache is None:
        for part in _cut(seeds, batch):
            whole = _chain(denoiser, schedule, part, names)
            drawn.more(len(part))
            yield whole
        return
    blocks = _cut(seeds, cache.block)
    chains = [partial(_block, denoiser, schedule, block, names, batch, drawn) for block in blocks]
    entries = [_entry(denoiser, schedule, block, names) for block in blocks]
    keep = cache.has_room_for(sum(entry.nbytes for entry in entries if entry not in cache))
    if keep:
        # Processes that start together share the work: each draws blocks that no other draws, and reads the rest below.
        for entry, chain in zip(entries, chains, strict=True):
            if not cache.compute_if_free(entry, chain):
                break
    for n, (block, entry, chain) in enumerate(zip(blocks, entries, chains, strict=True), start=1):
        tensors = cache.get_or_compute(entry, chain) if keep else cache.read(entry) or chain()
        drawn.at_least(n * cache.block)
        for start in range(0, len(block), batch):
            cut = slice(start, start + batch)
            yield {name: (t[:, cut] if name == H else t[cut]).to(denoiser.device) for name, t in tensors.items()}


def _cut(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


class _Drawn:
    """How many of the samples are there, for whoever listens; some are drawn here, some read from the cache."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def more(self, count: int) -> None:
        """Count samples that were drawn here."""
        self.at_least(self.done + count)

    def at_least(self, done: int) -> None:
        """Count the first `done` samples, wherever they come from."""
        self.done = min(max(self.done, done), self.total)
        advanced("samples", self.done, self.total)


def _block(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], names: Sequence[str], batch: int, drawn: _Drawn
) -> dict[str, Tensor]:
    """Return the tensors of one cache block, drawn `batch` at a time; on the CPU, from where the cache writes them."""
    parts = []
    for part in _cut(seeds, batch):
        parts.append(_chain(denoiser, schedule, part, names))
        drawn.more(len(part))
    return {name: torch.cat([part[name].cpu() for part in parts], dim=1 if name == H else 0) for name in names}


@torch.no_grad()
def _chain(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
    """Run the unshifted chain of one batch and return the named tensors."""
    denoiser, x, z = start_of(denoiser, schedule, seeds)
    tensors, states = {}, []
    for i, t in enumerate(schedule.timesteps):
        if before_step(i) in names:
            tensors[before_step(i)] = x
        features = denoiser.encode(x, t)
        if H in names:
            states.append(features.h)
        output = denoiser.decode(features).to(x.dtype)
        x = schedule.step(i, x, output, output, None if z is None else z[i])
    if H in names:
        tensors[H] = torch.stack(states)
    return {**tensors, IMAGES: x} if IMAGES in names else tensors


def _entry(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], names: Sequence[str]) -> Entry:
    """Return the cache entry of this batch: its key, and the shape and dtype of each named tensor."""
    image = (len(seeds), *denoiser.sample_shape), denoiser.chain_dtype
    h = (len(schedule), len(seeds), *denoiser.h_shape), denoiser.dtype
    return Entry(_key(denoiser, schedule, seeds), {name: h if name == H else image for name in names})


def _key(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int]) -> str:
    """Return the SHA-256 of everything that the samples of a batch depend on.

    Of the device only its type is part of the key: devices of one type may round differently.
    """
    config = {name: value for name, value in getattr(denoiser.network, "config", {}).items() if name[0] != "_"}
    parts = {
        "format": _FORMAT,
        "weights": denoiser.digest,
        "network": [type(denoiser.cut).__name__, config],  # the weights' digest does not cover how they are used
        "tap": {name: value for name, value in asdict(denoiser.cut.tap).items() if value is not None},
        "condition": denoiser.condition.digest(),
        "network_dtype": str(denoiser.dtype),
        "chain_dtype": str(denoiser.chain_dtype),
        "float32": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
        "schedule": asdict(schedule),
        "seeds": [int(seed) for seed in seeds],
        "device": denoiser.device.type,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@torch.no_grad()
def weighted_h(
    denoiser: Denoiser,
    schedule: Schedule,
    seeds: Sequence[int],
    weights: Tensor,
    batch: int = 64,
    cache: SampleCache | None = None,
) -> Tensor:
    """Return sum_n weights[a, n] h(seed n): [A, T, *h_shape], float64, on the CPU. weights: [A, N].

    Samples whose weight is 0 in every row are not drawn.
    """
    rows = weights.double().cpu()
    used = rows.any(dim=0).nonzero().flatten().tolist()
    total = torch.zeros(len(rows), len(schedule), math.prod(denoiser.h_shape), dtype=torch.float64)
    start = 0
    for part in draw_h(denoiser, schedule, [seeds[n] for n in used], batch, cache):
        count = part.shape[1]
        weight = rows[:, used[start : start + count]]  # [A, N']
        for i, h in enumerate(part):
            total[:, i] += weight @ h.flatten(1).cpu().double()
        start += count
    return total.reshape(*total.shape[:2], *denoiser.h_shape)
