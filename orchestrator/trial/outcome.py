"""How a trial ended, as a value with a sentence a person can act on."""

from enum import StrEnum

from core.errors import NonFiniteError


class Preempted(Exception):
    """The trial was asked to end, and has saved what it had."""

    def __str__(self) -> str:
        return "was asked to end, and saved what it had"


class MachineLost(Exception):
    """A machine that the trial ran on is gone, or about to go."""

    def __str__(self) -> str:
        return "lost a machine that it ran on"


class TrialOutcome(StrEnum):
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
    """The outcome that an exception out of a trial stands for, looking through what wraps it."""
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


# What torch's CPU allocator, CUDA and its libraries say instead of raising an error of their own kind.
_NO_MEMORY = (
    "out of memory",  # CUDA error: out of memory
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # for a convolution: none has the room to work
)


def out_of_memory(error: BaseException) -> bool:
    """Whether this error, not what it wraps, says that memory has run out; torch's own is told by its name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def sentence(error: BaseException) -> str:
    """The last line of what an exception says."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
