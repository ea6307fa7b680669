"""A model at work on a device: in which precision, with its weights where; and what is told where memory runs out."""

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

WEIGHTS = ("device", "cpu")  # where those of a model's blocks are kept
LESS = ("--weights cpu", "--precision bf16")  # options that take less of a device's memory

Away = Callable[[Denoiser, str], Denoiser]  # how a model on the CPU works on a device without all of its weights there


def own_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def loaded(model: str, device: str, precision: str, use: Mapping[str, Any], away: Away | None = None) -> Denoiser:
    """A model at work on a device. Sets torch's switches for the whole process; raises as its loading does."""
    dtype = use_precision(precision)
    if away is None:
        return Denoiser.from_pretrained(model, dtype, device, **use)
    return away(Denoiser.from_pretrained(model, dtype, "cpu", **use), device)


def placed(model: str, device: str, precision: str, weights: str, use: Mapping[str, Any]) -> Denoiser:
    """A model as a person asks for it, its weights on the device or in the CPU's memory, with the same results.

    Raises UserError for a precision or a place that there is not, and for a network that is not run block by block.
    """
    for name, value, allowed in (("precision", precision, tuple(PRECISIONS)), ("weights", weights, WEIGHTS)):
        if value not in allowed:
            raise UserError(f"{name}: got {shown(value)}; allowed: {', '.join(allowed)}")
    return loaded(model, device, precision, use, None if weights == "device" else offloaded)


@contextmanager
def told_of_memory(*instead: str) -> Iterator[None]:
    """Raises UserError, which says what takes less of it, where memory runs out inside the block."""
    try:
        yield
    except Exception as error:
        if classify(error) is not TrialOutcome.OUT_OF_MEMORY:
            raise
        raise UserError(f"memory ran out; these take less of it: {', '.join(instead)}") from None
