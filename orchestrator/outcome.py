"""How a trial ended, as a value with a sentence a person can act on."""

from enum import StrEnum

from core.errors import NonFiniteError


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
    TrialOutcome.OUT_OF_MEMORY: "ran out of memory: lower sampler.batch and train.micro_batch, or use checkpoint_steps",
    TrialOutcome.DIVERGED: "a loss became infinite: lower shift_scale or the learning rates",
    TrialOutcome.PREEMPTED: "was interrupted: the same command goes on with it",
    TrialOutcome.FAILED: "failed: its last lines say why",
}


def classify(error: BaseException) -> TrialOutcome:
    """The outcome that an exception out of a trial stands for, looking through what wraps it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NonFiniteError):
            return TrialOutcome.DIVERGED
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return TrialOutcome.OUT_OF_MEMORY
        cause = getattr(cause, "cause", None) or cause.__cause__
    return TrialOutcome.FAILED


def sentence(error: BaseException) -> str:
    """The last line of what an exception says."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
