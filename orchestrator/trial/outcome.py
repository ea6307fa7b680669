"""Classify how a trial ended, with a sentence that the user can act on."""

import re
from enum import StrEnum

from core.errors import NonFiniteError


class Preempted(Exception):
    """The error that the trial was asked to end, and has saved its state."""

    def __str__(self) -> str:
        return "was asked to end, and saved what it had"


class MachineLost(Exception):
    """The error that a machine that the trial ran on is gone, or about to go."""

    def __str__(self) -> str:
        return "lost a machine that it ran on"


class TrialOutcome(StrEnum):
    """How a trial ended. The values are those on disk and in MLflow; ADVICE explains each."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    PREEMPTED = "preempted"
    FAILED = "failed"


ADVICE = {
    TrialOutcome.COMPLETED: "ran to its end",
    TrialOutcome.PRUNED: "stopped early: other trials were ahead at the same iteration",
    TrialOutcome.OUT_OF_MEMORY: "ran out of memory in its smallest parts: give it more of a device",
    TrialOutcome.DIVERGED: "a loss became infinite: lower shift_scale or the learning rates",
    TrialOutcome.PREEMPTED: "was interrupted: the same command goes on with it",
    TrialOutcome.FAILED: "failed: its last lines say why",
}


def classify(error: BaseException) -> TrialOutcome:
    """Return the outcome that an exception from a trial stands for, following the causes that it wraps."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Preempted | MachineLost):
            return TrialOutcome.PREEMPTED
        if isinstance(cause, NonFiniteError):
            return TrialOutcome.DIVERGED
        if out_of_memory(cause):
            return TrialOutcome.OUT_OF_MEMORY
        cause = getattr(cause, "cause", None) or cause.__cause__
    return TrialOutcome.FAILED


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Messages of torch's CPU allocator, CUDA and its libraries, which raise no error class of their own.
_NO_MEMORY = (
    "out of memory",  # CUDA error: out of memory
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # for a convolution: no algorithm has enough memory
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether this error, not one that it wraps, says that memory ran out. torch's is recognised by its name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def sentence(error: BaseException) -> str:
    """Return the last line of an exception's message, or the name of its type where the message is empty.

    Colours, which Ray puts into its messages for a terminal, are left out.
    """
    lines = [line for line in _COLOUR.sub("", str(error)).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
