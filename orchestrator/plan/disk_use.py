"""Count the disk space that a sweep takes and what it will download, before it runs, from shapes and numbers alone.

Nothing is measured. A picture counts as large as one of noise, which compresses least. Databases are not counted; they
take some hundred bytes for every number that is recorded.
"""

import io
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import torch

from core.chain.schedule import Schedule
from core.methods.trained.training_settings import TrainingSettings
from core.methods.training_memory import directions_of, trained_count
from core.metrics import calibration
from core.metrics.factors import SEEDS as FACTOR_SEEDS
from core.metrics.strength import REFERENCE
from core.metrics.strength import SEEDS as STRENGTH_SEEDS
from core.model.catalogue import origin_of
from core.model.denoiser import Denoiser
from core.model.file_names import NETWORKS, TRANSFORMERS_WEIGHTS, WEIGHTS, weight_names
from core.model.prompts import reads_text
from core.pictures.traversal_grid import GRID_SCALES, grid
from core.samples.cache import SampleCache
from core.samples.training import SPREAD_SAMPLES
from orchestrator.search.space import configurations, fits, sample, trials
from orchestrator.spec import Sweep
from orchestrator.spec.sources import sources
from orchestrator.store.disk import free_bytes
from orchestrator.trial.settings import samples_of, settings_of

_CHECKPOINTS = 4  # at most, of one trial: the last two, the last that was measured, the best
_STATE = 32 << 10  # bytes of JSON beside a checkpoint's tensors
_PREVIEW = 1.1  # a picture in MLflow, with the small copy beside it
_DRAWN = 200  # random configurations, where the space is not run through


@dataclass(frozen=True)
class Download:
    """Something to download to this machine. bytes: None where the size is unknown without the network."""

    what: str
    name: str
    bytes: int | None


def disk_parts(sweep: Sweep, denoiser: Denoiser, schedule: Schedule, slots: int) -> dict[str, int]:
    """Return the largest bytes of each part; those of `while_trials_run` are free again after the trials."""
    count = trials(sweep)
    listed = configurations(sweep.space) if fits(sweep) else sample(sweep.space, _DRAWN, sweep.seed)
    settings = [settings_of(each, sweep) for each in listed]
    most = max(_directions(each) for each in settings)
    one = set_bytes(most, denoiser, schedule) + picture_bytes(most, denoiser)
    trained = [each for each in settings if isinstance(each, TrainingSettings)]
    state = max((engine_bytes(denoiser, schedule, each) for each in _largest(trained)), default=0)
    reports = ceil(sweep.train.iterations / sweep.evaluate_every) if trained else 1
    seeds = min(count, len({each["seed"] for each in listed}))
    return {
        "direction_sets_and_pictures": min(count, sweep.recovery.keep_trials) * (one + _STATE),
        "champion": 3 * one,  # the bundle, and its copies in MLflow
        "mlflow_files": count * (one + ceil((reports - 1 + _PREVIEW * reports) * picture_bytes(most, denoiser))),
        "samples_cache": cache_bytes(
            sweep, denoiser, schedule, [samples_of(each) for each in settings], seeds, trained
        ),
        "while_trials_run": min(slots, count) * _CHECKPOINTS * (state + one + _STATE),
    }


def set_bytes(directions: int, denoiser: Denoiser, schedule: Schedule) -> int:
    """Return the bytes of a direction set: a unit vector and a length per direction and step, in float32."""
    return 4 * directions * len(schedule) * (prod(denoiser.h_shape) + 1) + 4096


def picture_bytes(directions: int, denoiser: Denoiser) -> int:
    """Return the bytes of a traversal's picture: `directions` rows as large as one of noise."""
    rows = torch.rand(1, len(GRID_SCALES), *denoiser.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    file = io.BytesIO()
    grid(rows, [""]).save(file, "PNG")
    return directions * file.tell()


def engine_bytes(denoiser: Denoiser, schedule: Schedule, settings: TrainingSettings) -> int:
    """Return the bytes needed to resume a trial: every trained parameter and Adam's two moments, in float32."""
    return 12 * trained_count(denoiser, schedule, settings)


def cache_bytes(
    sweep: Sweep,
    denoiser: Denoiser,
    schedule: Schedule,
    looked_at: list[int],
    seeds: int,
    trained: list[TrainingSettings],
) -> int:
    """Return the bytes of unshifted samples that are kept for all trials, at most the limit of the cache.

    Counted are, for each seed, the h of the samples that methods use, the images and states that training starts from,
    and the images that `supervised` and `semantic` look at; further the h that random directions are made of at the
    end, and the images that sets are scaled and measured against, and whose factors are taken.
    """
    image = prod(denoiser.sample_shape) * 4
    h = len(schedule) * prod(denoiser.h_shape) * denoiser.dtype.itemsize
    pool = max((each.pool for each in trained), default=0)
    scored = max(looked_at) if {"supervised", "semantic"} & set(sweep.methods) else pool
    nbytes = seeds * (max(looked_at) * h + (pool + max(pool, scored)) * image)
    nbytes += SPREAD_SAMPLES * h
    nbytes += 10 * sweep.evaluate.seeds * image  # 5 for each seed, to compare trials and again to report
    nbytes += sum(map(len, (REFERENCE, STRENGTH_SEEDS, calibration.SEEDS, FACTOR_SEEDS))) * image
    return min(nbytes, SampleCache(Path()).limit_bytes)


def free_at(root: Path) -> int:
    """Return the free bytes where the sweep's folder will be, which need not exist yet."""
    return free_bytes(next(path for path in (root.resolve(), *root.resolve().parents) if path.exists()))


def downloads(sweep: Sweep, denoiser: Denoiser | None) -> list[Download]:
    """Return what has to be downloaded from the hub before the first trial, as far as this machine's cache lacks it.

    denoiser: the model without weights, None where its configuration is missing; its size is counted in float32, at
    most.
    """
    missing = []
    places = ("", *(f"{part}/" for part in NETWORKS))
    if origin_of(sweep.model) == "hub" and not _cached(sweep.model, WEIGHTS, places):
        size, what = None, "model"
        if denoiser is not None:
            parts = [denoiser.network, *([denoiser.codec.network] if denoiser.codec else [])]
            size = 4 * sum(weight.numel() for part in parts for weight in part.parameters())
            what = "model and its text encoders, which are not counted" if reads_text(denoiser.network) else "model"
        missing.append(Download(what, sweep.model, size))
    for source in sources(sweep):
        hub = source.key != "model" and not source.on_disk and origin_of(source.name) == "hub"
        if hub and not _cached(source.name, TRANSFORMERS_WEIGHTS, ("",)):
            missing.append(Download(source.key, source.name, None))
    return missing


def _directions(settings: object) -> int:
    """Return how many directions a trial finds, as far as its settings say; at least 1."""
    if isinstance(settings, TrainingSettings):
        return directions_of(settings)
    return int(getattr(settings, "directions", 0)) or 1


def _largest(trained: list[TrainingSettings]) -> list[TrainingSettings]:
    """Return, of all settings that train networks of the same kinds, those with the most directions."""
    most: dict[object, TrainingSettings] = {}
    for each in sorted(trained, key=directions_of):
        kinds = type(each), each.parametrisation, getattr(each, "look", None), each.discriminator_weight > 0
        most[kinds] = each
    return list(most.values())


def _cached(name: str, stem: str, folders: tuple[str, ...]) -> bool:
    """Return whether this machine's hub cache holds the weights, whole or in parts. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    hub_id, _, revision = name.partition("@")
    names = [f"{folder}{each}" for folder in folders for each in weight_names(stem)]
    paths = (try_to_load_from_cache(hub_id, each, revision=revision or None) for each in names)
    return any(isinstance(each, str) for each in paths)
