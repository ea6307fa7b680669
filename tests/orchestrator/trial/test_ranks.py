"""What the processes of a trial agree on, in real processes that talk over gloo."""

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from orchestrator.trial.outcome import MachineLost, Preempted
from orchestrator.trial.ranks import ALONE, Ranks

Told = dict[str, Any]


class Stubborn(Exception):
    """One that no other process can have."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}\n")


def _refuse(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def _ended(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error).strip()
    return "", ""


def _all(ranks: Ranks, rested: list[int]) -> Told:
    worked: list[int] = []

    def work() -> dict[str, int]:
        worked.append(ranks.rank)
        return {"from": ranks.rank}

    return {
        "on_first": ranks.on_first(work),
        "worked": worked,
        "rested": len(rested),
        "any": [ranks.any(False), ranks.any(ranks.rank == ranks.world - 1), ranks.any(True)],
        "least": ranks.least(10 - ranks.rank),
        "mean": ranks.mean({"loss": float(ranks.rank), "other": 0.1}),
        "raised": _ended(lambda: ranks.on_first(_refuse(Preempted()))),
        "stubborn": _ended(lambda: ranks.on_first(_refuse(Stubborn("this", "that")))),
        "after": ranks.on_first(lambda: "goes on"),
    }


def _process(rank: int, world: int, meeting: str, answers: "Queue[tuple[int, Told]]") -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    rested: list[int] = []
    answers.put((rank, _all(Ranks.join(lambda: rested.append(rank)), rested)))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_agree(world: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    given = [(rank, world, str(tmp_path / "meeting"), answers) for rank in range(world)]
    processes = [context.Process(target=_process, args=each, daemon=True) for each in given]
    for process in processes:
        process.start()
    told = dict(answers.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    answers.close()
    for rank in range(world):
        found = told[rank]
        assert found["on_first"] == {"from": 0}
        assert found["worked"] == ([0] if rank == 0 else [])
        assert found["rested"] == (0 if rank == 0 else 1)
        assert found["any"] == [False, True, True]
        assert found["least"] == 10 - (world - 1)
        assert found["mean"] == {"loss": (world - 1) / 2, "other": pytest.approx(0.1, rel=1e-15)}
        assert found["raised"] == ("Preempted", "was asked to end, and saved what it had")
        stubborn = ("Stubborn", "this and that") if rank == 0 else ("RuntimeError", "this and that")
        assert found["stubborn"] == stubborn
        assert found["after"] == "goes on"


def test_one_process_agrees_with_itself() -> None:
    found = _all(ALONE, [])
    assert ALONE.is_first and found["on_first"] == {"from": 0}
    assert found["any"] == [False, True, True]
    assert found["least"] == 10 and found["mean"] == {"loss": 0.0, "other": 0.1}
    assert found["raised"][0] == "Preempted" and found["stubborn"] == ("Stubborn", "this and that")


def test_errors_that_are_agreed_on_can_be_sent() -> None:
    for error in (Preempted(), MachineLost()):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
