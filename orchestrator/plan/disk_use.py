"""What a sweep takes of the disk, and what it will fetch, counted before it runs: from shapes and numbers alone.

Of the parts none is measured; a picture is counted as large as one of noise would be, which compresses least. Databases
come on top, with some hundred bytes for every number that is recorded.
"""

import io
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import torch

from core.chain.schedule import Schedule
from core.methods import learned
from core.methods.learned.memory import trained_bytes
from core.model.catalogue import origin_of
from core.model.denoiser import Denoiser
from core.model.file_names import NETWORKS, TRANSFORMERS_WEIGHTS, WEIGHTS, weight_names
from core.model.prompts import reads_text
from core.pictures.traversal_grid import GRID_SCALES, grid
from core.samples.cache import SampleCache
from orchestrator.search.space import configurations, fits, sample, trials
from orchestrator.spec import Sweep
from orchestrator.store.disk import free_bytes
from orchestrator.trial.settings import samples_of, settings_of

_CHECKPOINTS = 4  # of one trial at the most: the last two, the last that was measured, the best
_STATE = 32 << 10  # bytes of JSON beside a checkpoint's tensors
_PREVIEW = 1.1  # MLflow keeps a small copy beside every picture
_DRAWN = 200  # configurations, of a space that is not run through


@dataclass(frozen=True)
class Download:
    """Something that is not on this machine; bytes are None where only the network knows them."""

    what: str
    name: str
    bytes: int | None


def disk_parts(sweep: Sweep, denoiser: Denoiser, schedule: Schedule, slots: int) -> dict[str, int]:
    """Bytes by part, each at the most; `while_trials_run` is free again when they have ended."""
    count = trials(sweep)
    listed = configurations(sweep.space) if fits(sweep) else sample(sweep.space, _DRAWN, sweep.seed)
    settings = [settings_of(each, sweep) for each in listed]
    most = max(int(getattr(each, "directions", 0)) for each in settings) or 1
    one = set_bytes(most, denoiser, schedule) + picture_bytes(most, denoiser)
    trained = [each for each in settings if isinstance(each, learned.Settings)]
    state = max((engine_bytes(denoiser, schedule, each) for each in _largest(trained)), default=0)
    reports = ceil(sweep.train.iterations / sweep.evaluate_every) if trained else 1
    seeds = min(count, len({each["seed"] for each in listed}))
    return {
        "direction_sets_and_pictures": min(count, sweep.recovery.keep_trials) * (one + _STATE),
        "champion": 3 * one,  # beside the trial's own: the bundle, and what MLflow has of it
        "mlflow_files": count * (one + ceil((reports - 1 + _PREVIEW * reports) * picture_bytes(most, denoiser))),
        "samples_cache": cache_bytes(
            sweep, denoiser, schedule, [samples_of(each) for each in settings], seeds, trained
        ),
        "while_trials_run": min(slots, count) * _CHECKPOINTS * (state + one + _STATE),
    }


def set_bytes(directions: int, denoiser: Denoiser, schedule: Schedule) -> int:
    """A direction set: a unit vector and a length for each direction at each step, in float32."""
    return 4 * directions * len(schedule) * (prod(denoiser.h_shape) + 1) + 4096


def picture_bytes(directions: int, denoiser: Denoiser) -> int:
    """A traversal's picture: so many rows like one of noise."""
    rows = torch.rand(1, len(GRID_SCALES), *denoiser.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    file = io.BytesIO()
    grid(rows, [""]).save(file, "PNG")
    return directions * file.tell()


def engine_bytes(denoiser: Denoiser, schedule: Schedule, settings: learned.Settings) -> int:
    """What going on with a trial needs: every trained parameter and Adam's two moments, in float32."""
    small = trained_bytes(denoiser, schedule, settings, 2, 0)
    return 12 * (trained_bytes(denoiser, schedule, settings, 2, 1) - small)


def cache_bytes(
    sweep: Sweep,
    denoiser: Denoiser,
    schedule: Schedule,
    looked_at: list[int],
    seeds: int,
    trained: list[learned.Settings],
) -> int:
    """Unshifted samples that are kept for all trials: h of those that methods look at, for each of their seeds, images
    and states of those that training begins from, and the images that sets are measured against.
    """
    image = prod(denoiser.sample_shape) * 4
    h = len(schedule) * prod(denoiser.h_shape) * denoiser.dtype.itemsize
    pool = max((each.pool for each in trained), default=0)
    scored = max(looked_at) if "supervised" in sweep.methods else pool
    found = seeds * (max(looked_at) * h + (pool + max(pool, scored)) * image)
    found += 10 * sweep.evaluate.seeds * image  # 5 for each seed, to choose by and to report on
    return min(found, SampleCache(Path()).limit_bytes)


def free_at(root: Path) -> int:
    """What is free where the sweep will lie, which may not be there yet."""
    return free_bytes(next(path for path in (root.resolve(), *root.resolve().parents) if path.exists()))


def downloads(sweep: Sweep, denoiser: Denoiser | None) -> list[Download]:
    """What the hub has to send before the first trial, as far as this machine's cache does not hold it.

    denoiser: the model without weights, where its configuration is at hand; counted in float32, which is the most.
    """
    found = []
    places = ("", *(f"{part}/" for part in NETWORKS))
    if origin_of(sweep.model) == "hub" and not _cached(sweep.model, WEIGHTS, places):
        size, what = None, "model"
        if denoiser is not None:
            parts = [denoiser.network, *([denoiser.codec.network] if denoiser.codec else [])]
            size = 4 * sum(weight.numel() for part in parts for weight in part.parameters())
            what = "model and its text encoders, which are not counted" if reads_text(denoiser.network) else "model"
        found.append(Download(what, sweep.model, size))
    predictor = sweep.predictor
    if predictor and origin_of(predictor) == "hub" and not _cached(predictor, TRANSFORMERS_WEIGHTS, ("",)):
        found.append(Download("predictor", predictor, None))
    return found


def _largest(trained: list[learned.Settings]) -> list[learned.Settings]:
    """Of each parametrisation the settings with the most directions."""
    most: dict[str, learned.Settings] = {}
    for each in sorted(trained, key=lambda each: each.directions):
        most[each.parametrisation] = each
    return list(most.values())


def _cached(name: str, stem: str, folders: tuple[str, ...]) -> bool:
    """Whether the hub's cache on this machine holds the weights, whole or in parts; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    hub_id, _, revision = name.partition("@")
    names = [f"{folder}{each}" for folder in folders for each in weight_names(stem)]
    found = (try_to_load_from_cache(hub_id, each, revision=revision or None) for each in names)
    return any(isinstance(each, str) for each in found)
