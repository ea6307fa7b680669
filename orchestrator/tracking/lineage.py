"""Describe what a run has worked on as MLflow datasets: the model, the samples drawn from it, and real images.

Latents are not stored. A sample follows from the weights, the chain and its seed, so its digest is made from these.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.model.catalogue import origin_of
from orchestrator.spec import Sweep

Dataset = dict[str, str]  # name, digest, source_type, source, context, and for samples a profile

_DIGEST = 16  # characters of a digest, as many as a card shows of the weights' digest
_DRAWN_BY = ("prompts", "negative_prompt", "classes", "guidance", "size")  # what samples depend on beside the chain


def of_model(sweep: Sweep, weights: str) -> list[Dataset]:
    """Return the pretrained model as a dataset. weights: the digest of its weights."""
    source = {"model": sweep.model, "weight_digest": weights}
    return [_dataset(_name(sweep), weights[:_DIGEST], "model", source, "model")]


def of_trial(sweep: Sweep, weights: str, parameters: Mapping[str, Any]) -> list[Dataset]:
    """Return the model, the data that the trial's method learns from, and the samples that measure its directions."""
    from core.randomness import SELECT_SEEDS  # imports torch, which looking at a sweep does not need

    measured = _samples(sweep, weights, SELECT_SEEDS[: 5 * sweep.evaluate.seeds], "evaluation")
    return [*of_model(sweep, weights), *_training(sweep, weights, parameters), measured]


def of_result(sweep: Sweep, weights: str, trials: list[dict[str, Any]]) -> list[Dataset]:
    """Return the datasets of all trials, and the samples that the champion is reported on."""
    from core.randomness import REPORT_SEEDS

    reported = _samples(sweep, weights, REPORT_SEEDS[: 5 * sweep.evaluate.seeds], "report")
    datasets = [dataset for parameters in trials for dataset in of_trial(sweep, weights, parameters)]
    return list({(each["name"], each["digest"]): each for each in [*datasets, reported]}.values())


def _training(sweep: Sweep, weights: str, parameters: Mapping[str, Any]) -> Iterator[Dataset]:
    """Yield the data that the method finds its directions in; nothing where it cannot be read: the trial reports it."""
    from core.samples.training import training_seeds
    from orchestrator.trial.settings import samples_of, settings_of

    try:
        settings = settings_of(parameters, sweep)
        pairs = getattr(settings, "pairs", None)
        if pairs is None:
            yield _samples(sweep, weights, training_seeds(samples_of(settings), settings.seed), "training")
        else:
            folder = Path(pairs).expanduser().resolve()
            yield _dataset(pairs, _of_folder(folder), "local", {"uri": str(folder)}, "training")
    except (UserError, OSError):
        return


def _samples(sweep: Sweep, weights: str, seeds: range, context: str) -> Dataset:
    """Return images that the model draws, one for each seed, as a dataset."""
    chain = {"steps": sweep.sampler.steps, "eta": sweep.sampler.eta}
    drawn_by = {name: value for name, value in sweep.denoiser.use.items() if name in _DRAWN_BY and value}
    source = {"weight_digest": weights, **chain, **drawn_by, "first_seed": seeds[0], "samples": len(seeds)}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:_DIGEST]
    profile = {"num_rows": len(seeds), **chain}
    return _dataset(f"samples of {_name(sweep)}", digest, "samples", source, context, profile)


def _name(sweep: Sweep) -> str:
    """Return the model's name, without the path to its folder or file."""
    return Path(sweep.model).name if origin_of(sweep.model) in ("folder", "file") else sweep.model


def _dataset(
    name: str, digest: str, kind: str, source: dict[str, Any], context: str, profile: dict[str, Any] | None = None
) -> Dataset:
    dataset = {"name": name, "digest": digest, "source_type": kind, "source": json.dumps(source), "context": context}
    return dataset | ({"profile": json.dumps(profile)} if profile else {})


@lru_cache
def _of_folder(folder: Path) -> str:
    """Return a digest of the names and contents of the files in a folder. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            digest.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()[:_DIGEST]
