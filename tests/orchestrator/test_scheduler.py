"""ASHA where methods that train meet methods that do not."""

from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import TrialScheduler

from orchestrator.spec import parse
from orchestrator.sweep import _scheduler


@dataclass
class Trial:
    """As much of Tune's trial as ASHA looks at."""

    trial_id: str
    method: str
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config["method"] = self.method


def at(step: int, value: float) -> dict[str, Any]:
    return {"global_step": step, "identifiability": value}


def test_a_set_found_at_once_stops_no_trial_that_is_still_learning() -> None:
    """The last rung is at iteration 300 of 400, so that the ends of others would be compared with the way there."""
    asha = _scheduler(
        parse(
            {
                "name": "a",
                "model": "b",
                "method": {"choice": ["learned", "pca"]},
                "search": {},
                "scheduler": {"asha": {"grace": 100}},
            }
        )
    )
    assert asha is not None
    for number in range(5):
        found = Trial(f"pca{number}", "pca")
        asha.on_trial_add(None, found)
        assert asha.on_trial_result(None, found, at(400, 0.99)) == TrialScheduler.CONTINUE
        asha.on_trial_complete(None, found, at(400, 0.99))
    trials = [Trial(f"learned{number}", "learned") for number in range(4)]
    for trial in trials:
        asha.on_trial_add(None, trial)
    values = [0.3, 0.4, 0.5, 0.1]
    ends = [asha.on_trial_result(None, trial, at(300, value)) for trial, value in zip(trials, values, strict=True)]
    assert ends == [TrialScheduler.CONTINUE] * 3 + [TrialScheduler.STOP]
    assert asha.on_trial_result(None, trials[0], at(400, 0.3)) == TrialScheduler.STOP, "at its end"


def test_no_scheduler_no_asha() -> None:
    assert _scheduler(parse({"name": "a", "model": "b", "search": {}, "budget": {"trials": 1}})) is None
