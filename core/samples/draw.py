"""Unshifted samples, and the h they pass through. They depend on what is frozen alone: a cache keeps them for everyone.

A sample is the same with and without a cache: to the last bit where the number drawn at a time divides what is kept
together, else beyond rounding.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.model.denoiser import Denoiser
from core.randomness import noise, step_noise
from core.samples.cache import Entry, SampleCache

IMAGES = "x_0"
H = "h"
_FORMAT = 2  # one more whenever samples of the same key become others


def before_step(i: int) -> str:
    """The name of the state x_t that the chain has before step i."""
    return f"before_step_{i}"


def draw_images(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Iterator[Tensor]:
    """x_0 of the samples of `seeds`, `batch` at a time: [N, *sample_shape], on the denoiser's device.

    Of a latent model these are latents: `denoiser.images` shows them.
    """
    return (drawn[IMAGES] for drawn in draw(denoiser, schedule, seeds, (IMAGES,), batch, cache))


def draw_h(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Iterator[Tensor]:
    """h of the samples of `seeds`, `batch` at a time: [T, N, *h_shape], on the denoiser's device."""
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
    """What the chains of `seeds` give, `batch` of them at a time: memory does not grow with their number.

    names: what of it, x_0 [N, *sample_shape], h [T, N, *h_shape] or the state before a step [N, *sample_shape]; on the
    denoiser's device. cache: where it is read, or kept once drawn, unless all of it would fill too much of the cache.
    """
    if cache is None:
        yield from (_chain(denoiser, schedule, part, names) for part in _cut(seeds, batch))
        return
    blocks = _cut(seeds, cache.block)
    chains = [partial(_block, denoiser, schedule, block, names, batch) for block in blocks]
    entries = [_entry(denoiser, schedule, block, names) for block in blocks]
    keep = cache.worthwhile(sum(entry.nbytes for entry in entries if entry not in cache))
    if keep:
        # Processes that start together share the work: each draws what no other is drawing, and reads the rest below.
        for entry, chain in zip(entries, chains, strict=True):
            if not cache.prepare(entry, chain):
                break
    for block, entry, chain in zip(blocks, entries, chains, strict=True):
        found = cache.get(entry, chain) if keep else cache.read(entry) or chain()
        for start in range(0, len(block), batch):
            cut = slice(start, start + batch)
            yield {name: (t[:, cut] if name == H else t[cut]).to(denoiser.device) for name, t in found.items()}


def _cut(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _block(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], names: Sequence[str], batch: int
) -> dict[str, Tensor]:
    """What is kept together, drawn `batch` at a time, on the CPU, where it is written from."""
    parts = [_chain(denoiser, schedule, part, names) for part in _cut(seeds, batch)]
    return {name: torch.cat([part[name].cpu() for part in parts], dim=1 if name == H else 0) for name in names}


@torch.no_grad()
def _chain(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
    """The unshifted chain of one batch."""
    dtype, device, shape = _chain_dtype(denoiser), denoiser.device, denoiser.sample_shape
    x = noise(seeds, shape, dtype, device)
    z = step_noise(seeds, shape, len(schedule), dtype, device) if schedule.stochastic else None
    denoiser, given, states = denoiser.for_samples(seeds), {}, []
    for i, t in enumerate(schedule.timesteps):
        if before_step(i) in names:
            given[before_step(i)] = x
        features = denoiser.encode(x, t)
        if H in names:
            states.append(features.h)
        output = denoiser.decode(features).to(dtype)
        x = schedule.step(i, x, output, output, None if z is None else z[i])
    if H in names:
        given[H] = torch.stack(states)
    return {**given, IMAGES: x} if IMAGES in names else given


def _entry(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], names: Sequence[str]) -> Entry:
    """What the cache calls this batch, and what it has to find."""
    image = (len(seeds), *denoiser.sample_shape), _chain_dtype(denoiser)
    h = (len(schedule), len(seeds), *denoiser.h_shape), denoiser.dtype
    return Entry(_key(denoiser, schedule, seeds), {name: h if name == H else image for name in names})


def _key(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int]) -> str:
    """SHA-256 of everything that the samples of a batch depend on; devices of one type may round differently."""
    config = {name: value for name, value in getattr(denoiser.network, "config", {}).items() if name[0] != "_"}
    parts = {
        "format": _FORMAT,
        "weights": denoiser.digest,
        "network": [type(denoiser.cut).__name__, config],  # the digest does not know how the weights are used
        "tap": {name: value for name, value in asdict(denoiser.cut.tap).items() if value is not None},
        "condition": denoiser.condition.digest(),
        "network_dtype": str(denoiser.dtype),
        "chain_dtype": str(_chain_dtype(denoiser)),
        "float32": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
        "schedule": asdict(schedule),
        "seeds": [int(seed) for seed in seeds],
        "device": denoiser.device.type,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _chain_dtype(denoiser: Denoiser) -> torch.dtype:
    """The chain's arithmetic is at least float32, however coarse the network's is."""
    return torch.promote_types(denoiser.dtype, torch.float32)
