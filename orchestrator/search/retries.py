"""Decide whether a trial may be tried again after its process has ended early, and count how often it was."""

from dataclasses import dataclass, replace

from orchestrator.spec.sections import Recovery
from orchestrator.trial.outcome import TrialOutcome

# Outcomes after which another attempt may succeed, and the key of `recovery` that limits how many follow.
_COUNTED = {
    TrialOutcome.FAILED: "crashes",
    TrialOutcome.OUT_OF_MEMORY: "out_of_memory",
    TrialOutcome.PREEMPTED: "preemptions",
}


@dataclass(frozen=True)
class Ends:
    """How often the process of a trial ended early, by cause."""

    crashes: int = 0
    out_of_memory: int = 0
    preemptions: int = 0

    @property
    def attempt(self) -> int:
        """The number of the next attempt, from 1."""
        return 1 + self.crashes + self.out_of_memory + self.preemptions

    def after(self, outcome: TrialOutcome, recovery: Recovery) -> "Ends | None":
        """Return the counts for the next attempt after one that ended with `outcome`; None where none may follow.

        None may follow a trial that completed, diverged or was pruned, and none beyond the limits of `recovery`, of
        which null sets no limit.
        """
        cause = _COUNTED.get(outcome)
        if cause is None:
            return None
        limit = getattr(recovery, cause)
        if limit is not None and getattr(self, cause) >= limit:
            return None
        return replace(self, **{cause: getattr(self, cause) + 1})
