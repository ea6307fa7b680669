"""How a trial's end is named."""

import pytest

from core.errors import NonFiniteError
from orchestrator.trial.outcome import ADVICE, MachineLost, Preempted, TrialOutcome, classify, sentence


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def wrapped(inner: Exception) -> Exception:
    try:
        raise RuntimeError("Ray's wrapper") from inner
    except RuntimeError as outer:
        return outer


class TaskError(Exception):
    """Holds what it wraps as Ray's does."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a task failed")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NonFiniteError("direction_loss became nan"), TrialOutcome.DIVERGED),
        (wrapped(NonFiniteError("x")), TrialOutcome.DIVERGED),
        (Preempted(), TrialOutcome.PREEMPTED),
        (wrapped(Preempted()), TrialOutcome.PREEMPTED),
        (MachineLost(), TrialOutcome.PREEMPTED),
        (wrapped(wrapped(MachineLost())), TrialOutcome.PREEMPTED),
        (TaskError(Preempted()), TrialOutcome.PREEMPTED),
        (TaskError(wrapped(NonFiniteError("x"))), TrialOutcome.DIVERGED),
        (wrapped(TaskError(MemoryError())), TrialOutcome.OUT_OF_MEMORY),
        (TaskError(ValueError("x")), TrialOutcome.FAILED),
        (wrapped(MemoryError()), TrialOutcome.OUT_OF_MEMORY),
        (OutOfMemoryError("CUDA"), TrialOutcome.OUT_OF_MEMORY),
        (
            wrapped(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
            TrialOutcome.OUT_OF_MEMORY,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), TrialOutcome.OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), TrialOutcome.OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), TrialOutcome.FAILED),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when"), TrialOutcome.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), TrialOutcome.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), TrialOutcome.OUT_OF_MEMORY),
        (RuntimeError("GET was unable to find an engine to execute this"), TrialOutcome.OUT_OF_MEMORY),
        (ValueError("can't allocate memory"), TrialOutcome.FAILED),
        (ValueError("x"), TrialOutcome.FAILED),
    ],
)
def test_what_an_error_stands_for(error: Exception, outcome: TrialOutcome) -> None:
    assert classify(error) is outcome


def test_every_outcome_has_its_advice() -> None:
    assert ADVICE.keys() == set(TrialOutcome)


def test_an_error_is_told_in_its_last_line() -> None:
    assert sentence(ValueError("Traceback ...\n  File\nValueError: too small\n\n")) == "ValueError: too small"
    assert sentence(ValueError()) == "ValueError"
