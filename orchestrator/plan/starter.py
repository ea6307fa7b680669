"""Write a first sweep file for a model, with sizes that fit it and this machine, and ranges in which settings act.

`orchestrate new` prints the file, `orchestrate find` runs it. What the user has not asked for follows from the model's
architecture alone, so no weights are loaded.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from core.errors import UserError
from core.model.catalogue import MODELS
from core.model.denoiser import Denoiser
from core.model.families import family_of
from core.model.prompts import reads_text
from orchestrator.plan.wanted import Wanted, method_for
from orchestrator.spec import BY_ATTRIBUTES, METHODS, PARAMETERS, TRAINED, Sweep, parse
from orchestrator.spec.scalars import to_yaml

_FEW_STEPS = re.compile(r"(?:^|[^a-z])(?:lcm|turbo|lightning|schnell|hyper-?sd)(?:[^a-z]|$)", re.IGNORECASE)
_SMALL = 64  # pixels; up to here a trial takes minutes on a CPU
_LARGE = 1 << 19  # numbers of h; above this a direction is one vector for all tokens
_DIRECTIONS = 16
_MOST = 64  # trials of a search whose budget is time

# What is searched where there is more than one trial: values between which sets differ (docs/methods.md).
_SCALES = {"float": [0.5, 2.0], "log": True}
_WEIGHTS = {"float": [1.0, 30.0], "log": True}
_SEARCHED: dict[str, dict[str, Any]] = {
    "learned": {"shift_scale": _SCALES, "discriminator_weight": _WEIGHTS},
    "guided": {"shift_scale": _SCALES, "discriminator_weight": _WEIGHTS},
    "pca": {"pca.joint": {"choice": [True, False]}},
    "jacobian": {"jacobian.step": {"choice": ["middle", "every"]}},
    "semantic": {"semantic.sources": {"choice": ["flattest", "components"]}},
    "sae": {"sae.seen": {"choice": ["places", "whole"]}, "sae.active": {"choice": [4, 16]}},
    "supervised": {"supervised.project": {"choice": [False, True]}},
    "random": {},
}


@dataclass(frozen=True)
class SweepFile:
    """A sweep, and the text of the file that describes it."""

    sweep: Sweep
    text: str


def starter(wanted: Wanted) -> SweepFile:
    """Return the sweep file. Raises UserError where the model is missing, or what is asked for does not fit it."""
    method = method_for(wanted)
    use = _use(wanted)
    denoiser = Denoiser.without_weights(wanted.model, **use)
    if prod(denoiser.h_shape) > _LARGE:
        use["form"] = "pooled"
        denoiser = Denoiser.without_weights(wanted.model, **use)
    if reads_text(denoiser.network) and not wanted.prompts:
        raise UserError(
            f"--prompt: model '{wanted.model}' reads text; say what its samples show, for example "
            "--prompt 'a portrait photo of a person', and again for samples of another kind"
        )
    if method in BY_ATTRIBUTES and wanted.predictor is None and wanted.model not in MODELS:
        raise UserError(
            f"--predictor: method {method} needs a network that scores attributes, and model '{wanted.model}' has none "
            "of its own: name an image classifier or a CLIP model of transformers, a folder or a hub id"
        )
    entries = list(_entries(wanted, method, denoiser, use))
    data = {key: value for _, key, value in entries}
    prefix = f"{_slug(wanted.model)}-{method}"
    name = f"{prefix}-{parse({'name': prefix} | data).identity()[:4]}"  # the same on machines that come to the same
    body = "\n".join(f"# {why}\n{_written(key, value)}" for why, key, value in entries)
    return SweepFile(parse({"name": name} | data), f"name: {name}\n\n{body}")


def _written(key: str, value: Any) -> str:
    """Return an entry of the file: what is in it on one line, as far as that is how people write it."""
    text = to_yaml({key: value}, default_flow_style=None, width=1000)
    return f"{text.strip()[1:-1]}\n" if text.startswith("{") else text


def _use(wanted: Wanted) -> dict[str, Any]:
    """Return the section `denoiser` as far as the user fills it."""
    given = {
        "prompts": list(wanted.prompts),
        "negative_prompt": wanted.negative_prompt,
        "guidance": wanted.guidance,
        "classes": list(wanted.classes),
    }
    return {key: value for key, value in given.items() if value not in (None, [])}


def _entries(wanted: Wanted, method: str, denoiser: Denoiser, use: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the entries of the file in order: the comment above it, its key, its value."""
    size, h = _by(denoiser.image_shape[1:]), _by(denoiser.h_shape)
    small, on_gpu = max(denoiser.image_shape[1:]) <= _SMALL, torch.cuda.is_available()
    train, trials = _train(small, on_gpu), _trials(wanted)
    yield f"images of {size}, an h of {h} = {prod(denoiser.h_shape)} numbers a step", "model", wanted.model
    if wanted.predictor:
        yield "what scores attributes of images", "predictor", wanted.predictor
    yield f"of {', '.join(METHODS)} (docs/methods.md)", "method", method
    if use := use | _guidance(wanted, denoiser, small):
        yield "how the model is used; samples take prompts or classes in turn", "denoiser", use
    yield "more steps draw better images and take longer", "sampler", _sampler(wanted.model, denoiser, small)
    if method in TRAINED:
        yield "a gradient goes through the whole chain in every iteration", "train", train
    if search := _search(wanted, method, trials):
        yield "values, choices and ranges; docs/sweep-file.md has all that can be searched", "search", search
    objectives = [{"factor_score": "max"}, *([{"fidelity_kid": "min"}] if trials > 1 else [])]
    yield "the first decides which set is the champion, others where sets are level in it", "objectives", objectives
    if trials == 1:
        yield (
            "samples that the set is measured on; with more its intervals are narrower",
            "evaluate",
            {"seeds": 12},
        )
    if method in TRAINED and trials > 1:
        asha = {"grace": train["iterations"] // 3, "reduction": 3}
        yield "trials that fall behind are stopped", "scheduler", {"asha": asha}
    limit = {} if wanted.minutes is None else {"hours": round(wanted.minutes / 60, 4)}
    yield "the sweep ends when this is spent", "budget", {"trials": trials} | limit
    yield _found(on_gpu, small), "resources", _resources(on_gpu)
    if on_gpu and not small and method in TRAINED:
        yield "what trains is kept in the network's precision", "deepspeed", {"precision": "bf16"}


def _guidance(wanted: Wanted, denoiser: Denoiser, small: bool) -> dict[str, Any]:
    """Return the usual guidance of a model that is led by prompts or classes, where the user gives none."""
    family = family_of(type(denoiser.network).__name__)
    if wanted.guidance is not None or _few_steps(wanted.model, denoiser) or family.always_distilled:
        return {}
    if reads_text(denoiser.network) and denoiser.network.config.get("time_cond_proj_dim") is None:
        return {"guidance": 2 if small else 5}
    return {"guidance": 4} if family.guided_classes and wanted.classes else {}


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _few_steps(model: str, denoiser: Denoiser) -> bool:
    """Return whether a model was distilled to draw in a few steps, as far as its name or its scheduler says."""
    return bool(_FEW_STEPS.search(_slug(model))) or type(denoiser.scheduler).__name__.startswith("LCM")


def _sampler(model: str, denoiser: Denoiser, small: bool) -> dict[str, Any]:
    """Return the chain: as few steps as keep its images, by the kind of model."""
    if _few_steps(model, denoiser):
        return {"steps": 4}
    if small:
        return {"steps": 8 if denoiser.codec else 6}
    if denoiser.codec:
        return {"steps": 20, "batch": 8}
    return {"steps": 40, "injection": "asymmetric", "window": [1000, 500], "batch": 8}


def _train(small: bool, on_gpu: bool) -> dict[str, Any]:
    if small:
        return {"iterations": 150, "batch": 16}
    return {"iterations": 2000, "batch": 16, "pool": 512} | ({"precision": "bf16"} if on_gpu else {})


def _trials(wanted: Wanted) -> int:
    """Return the number of trials: one, unless the budget leaves room for a search."""
    return wanted.trials or (1 if wanted.minutes is None else _MOST)


def _search(wanted: Wanted, method: str, trials: int) -> dict[str, Any]:
    search: dict[str, Any] = dict(_SEARCHED[method]) if trials > 1 else {}
    if method in PARAMETERS["directions"].methods:
        count = wanted.directions or _DIRECTIONS
        fewer = sorted({max(2, count // 2), count})
        search = {"directions": {"choice": fewer} if trials > 1 and wanted.directions is None else count} | search
    if wanted.attributes:
        key = "guided.attributes" if method == "guided" else "supervised.attribute"
        search[key] = "; ".join(wanted.attributes)
    if trials > 1 and method not in TRAINED and method != "supervised":
        search["seed"] = {"choice": [0, 1, 2]}
    return search


def _resources(on_gpu: bool) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    return {"gpus_per_trial": 1, "cpus_per_worker": min(4, cores)} if on_gpu else {"cpus_per_worker": 1}


def _found(on_gpu: bool, small: bool) -> str:
    """Return what this machine has, as a comment."""
    if on_gpu:
        return f"written on a machine with {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = f"written on a machine with {os.cpu_count()} CPU cores and no GPU"
    return (
        cores if small else f"{cores}, where a model of this size takes hours: set gpus_per_trial: 1 where there is one"
    )


def _slug(model: str) -> str:
    """Return the last part of a model's name as a part of a sweep's name."""
    last = (
        re.split(r"[/\\]", model.partition("@")[0].rstrip("/\\"))[-1].removesuffix(".safetensors").removesuffix(".ckpt")
    )
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-_")[:60] or "model"
