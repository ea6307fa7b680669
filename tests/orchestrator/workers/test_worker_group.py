"""What an attempt of several processes ended of, by what is left of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from core.errors import NonFiniteError, UserError
from orchestrator.trial.outcome import MachineLost, Preempted, TrialOutcome, classify
from orchestrator.workers import worker_group as gang
from orchestrator.workers.process_record import ProcessRecord
from orchestrator.workers.worker_group import WorkerGroup, _bare, _cause

GLOO = RuntimeError("[/gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.77.0.3]:1")


def failures(*errors: Exception) -> Exception:
    """As Ray Train tells them, by rank."""
    return WorkerGroupError("two workers", dict(enumerate(errors)))


def raised(error: Exception) -> Exception:
    return UserExceptionWithTraceback(error, "Traceback: ...")


def died(why: str) -> Exception:
    error = ActorDiedError()
    error.error_msg = why
    error.args = (why,)
    return WorkerHealthCheckFailedError("A worker health check failed.", error)


def test_an_error_is_the_workers_own() -> None:
    mine = UserError("model: there is none")
    assert _bare(raised(mine)) is mine and _bare(mine) is mine


def test_a_machine_that_ray_has_given_up_is_lost() -> None:
    lost = died("The actor died because its node has died. Node Id: 1a2b")
    assert isinstance(_bare(lost), MachineLost)
    assert isinstance(_cause(failures(raised(GLOO), lost)), MachineLost)
    assert not isinstance(_bare(died("The actor is dead because its worker process has died.")), MachineLost)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError("out of memory"), TrialOutcome.OUT_OF_MEMORY),
        (NonFiniteError("direction_loss became nan at iteration 3"), TrialOutcome.DIVERGED),
        (Preempted(), TrialOutcome.PREEMPTED),
    ],
)
def test_the_cause_is_not_what_the_others_ended_for(error: Exception, outcome: TrialOutcome) -> None:
    for order in ((raised(error), raised(GLOO)), (raised(GLOO), raised(error))):
        assert _cause(failures(*order)) is error
    assert classify(_cause(failures(raised(GLOO), raised(error)))) == outcome


class Driver(WorkerGroup):  # type: ignore[misc]
    """One whose processes have ended, without Ray."""

    def __init__(self, folder: Path, error: Exception | None, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.trial, self.error = {"attempt": 2}, SimpleNamespace(path=folder), error
        self.machines, self.asked = {"any"}, list[set[str]]()

        def answer(nodes: Any) -> bool:
            self.asked.append(set(nodes))
            return there

        monkeypatch.setattr(gang, "all_answer", answer)


def test_a_lost_connection_is_a_lost_machine_where_one_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, (attempt, node) in enumerate([(2, "a"), (2, "b"), (1, "c")]):
        ProcessRecord.this(attempt, rank, node).write(tmp_path)
    gone = Driver(tmp_path, failures(raised(GLOO)), False, monkeypatch)
    assert isinstance(gone._cause(), MachineLost) and gone.asked == [{"a", "b"}]
    killed = Driver(tmp_path, failures(raised(GLOO)), True, monkeypatch)._cause()
    assert str(killed) == "one of its processes ended without a word (killed, or crashed in a library)"


def test_before_its_processes_have_said_where_they_are_it_may_be_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path, RuntimeError("they did not start"), False, monkeypatch)
    assert isinstance(driver._cause(), MachineLost) and driver.asked == [{"any"}]


def test_a_cause_that_is_known_asks_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path, failures(raised(Preempted())), False, monkeypatch)
    assert isinstance(driver._cause(), Preempted) and not driver.asked


def test_an_actor_that_does_not_answer_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = WorkerHealthCheckFailedError("failed", ActorUnavailableError("Socket closed", None))
    assert isinstance(Driver(tmp_path, failures(silent), False, monkeypatch)._cause(), MachineLost)
    assert isinstance(Driver(tmp_path, failures(silent), True, monkeypatch)._cause(), ActorUnavailableError)


def test_an_attempt_that_waits_for_machines_ends_when_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path, None, True, monkeypatch)
    driver.folder = SimpleNamespace(stop=tmp_path / "stop")
    assert not driver._is_to_wait_no_more()
    driver.folder.stop.touch()
    assert driver._is_to_wait_no_more()
    ProcessRecord.this(2, 0, "a").write(tmp_path)  # which sees that itself, and saves
    assert not driver._is_to_wait_no_more()
