"""Load a model on a device with a precision and a place for its weights, and advise the user where memory runs out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from core.directions.reading import shown
from core.errors import UserError
from core.execution.streaming import offloaded
from core.model.denoiser import Denoiser
from core.precision import PRECISIONS, use_precision
from orchestrator.trial.outcome import TrialOutcome, classify

WEIGHTS = ("device", "cpu")  # where the weights of a model's blocks are kept
LESS = ("--weights cpu", "--precision bf16")  # options that take less of a device's memory

StreamWeights = Callable[[Denoiser, str], Denoiser]  # makes a model run on a device that does not hold all its weights


def own_device() -> str:
    """Return "cuda" where this machine has a GPU that torch can use, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def loaded(
    model: str, device: str, precision: str, use: Mapping[str, Any], stream: StreamWeights | None = None
) -> Denoiser:
    """Return a model that runs on `device`. Sets torch's precision switches for the whole process.

    stream: runs the model, loaded on the CPU, by streaming its weights. Raises what `Denoiser.from_pretrained` raises.
    """
    dtype = use_precision(precision)
    if stream is None:
        return Denoiser.from_pretrained(model, dtype, device, **use)
    return stream(Denoiser.from_pretrained(model, dtype, "cpu", **use), device)


def placed(model: str, device: str, precision: str, weights: str, use: Mapping[str, Any]) -> Denoiser:
    """Return a model with its weights on the device or in the CPU's memory, as `weights` says; results are equal.

    Raises UserError for an unknown precision or place, and for a network that cannot run block by block.
    """
    for name, value, allowed in (("precision", precision, tuple(PRECISIONS)), ("weights", weights, WEIGHTS)):
        if value not in allowed:
            raise UserError(f"{name}: got {shown(value)}; allowed: {', '.join(allowed)}")
    return loaded(model, device, precision, use, None if weights == "device" else offloaded)


@contextmanager
def advice_on_memory(*instead: str) -> Iterator[None]:
    """Raise UserError where memory runs out inside the block, naming in the message what takes less of it."""
    try:
        yield
    except Exception as error:
        if classify(error) is not TrialOutcome.OUT_OF_MEMORY:
            raise
        raise UserError(f"memory ran out; these take less of it: {', '.join(instead)}") from None
