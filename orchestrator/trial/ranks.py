"""The processes that share a trial, and what they have to agree on: one works where one is enough, all go the same way.

They are ranks of torch.distributed, which whoever starts them has set up (orchestrator.workers.worker_group). What is
agreed on goes through a gloo group of its own, so that it waits on no GPU.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from core.execution.streaming import Bytes
from orchestrator.trial.outcome import sentence

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # the first rank may work for long, and its own watchdog ends it where it hangs


def _nothing() -> None:
    pass


_NO_MORE = -1  # in place of a block's number


class Assembly:
    """How the processes of a trial put the blocks of a partitioned network together (core.execution.streaming).

    They train in step, so that all call the same block at the same time. Where one of them works by itself, on what
    only one has to do, it says which block it calls, and the others attend: they give their parts, and do nothing else.
    Blocks are numbered in the order in which this process came to have them.

    group: over which the first process says what it calls; a block's parts travel between the devices that they are on.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._parts: list[Bytes] = []
        self._leading = False

    def gather(self, part: Bytes) -> Bytes:
        """How all of a block is had, of which this process has a part (core.execution.streaming.Gather)."""
        self._parts.append(part)
        return partial(self._called, len(self._parts) - 1)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """While the first process works by itself. The others attend for as long."""
        self._leading = True
        try:
            yield
        finally:
            self._leading = False
            self._say(_NO_MORE)

    def attend(self) -> None:
        """Give this process's part of every block that the first process calls, until it calls no more."""
        while (number := self._heard()) != _NO_MORE:
            self._called(number)

    def _called(self, number: int) -> Tensor:
        own = self._parts[number]()
        whole = own.new_empty(distributed.get_world_size() * len(own))  # no memory: before the others are called
        if self._leading:
            self._say(number)
        distributed.all_gather_into_tensor(whole, own)
        return whole

    def _say(self, number: int) -> None:
        distributed.broadcast(torch.tensor([number]), 0, self._group)

    def _heard(self) -> int:
        told = torch.empty(1, dtype=torch.int64)
        distributed.broadcast(told, 0, self._group)
        return int(told.item())


@dataclass(frozen=True)
class Ranks:
    """One process of those that share a trial; by default the only one.

    rest: called before this process waits for the first one to finish something; assembly: how several put the weights
    of a partitioned network together.
    """

    rank: int = 0
    world: int = 1
    group: Any = None
    rest: Callable[[], None] = _nothing
    assembly: Assembly | None = None

    @classmethod
    def join(cls, rest: Callable[[], None] = _nothing) -> "Ranks":
        """The ranks of this process's torch.distributed world. Every rank has to call it."""
        rank, world = distributed.get_rank(), distributed.get_world_size()
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(rank, world, group, rest, Assembly(group))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, for every rank; where it raises, it raises on every rank."""
        if self.assembly is None:
            return work()
        told: list[Any] = [None]
        if self.leads:
            try:
                with self.assembly.leading():
                    told = [(work(), None)]
            except Exception as error:
                distributed.broadcast_object_list([(None, _portable(error))], 0, self.group)
                raise
        else:
            self.rest()
            self.assembly.attend()
        distributed.broadcast_object_list(told, 0, self.group)
        value: T
        value, ended = told[0]
        if ended is not None:
            raise ended
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self._reduced(torch.tensor([int(flag)]), distributed.ReduceOp.MAX).item())

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return int(self._reduced(torch.tensor([number]), distributed.ReduceOp.MIN).item())

    def mean(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Each term's mean over the ranks, which all have the same terms of equally many samples."""
        values = torch.tensor(list(terms.values()), dtype=torch.float64)
        total = self._reduced(values, distributed.ReduceOp.SUM)
        return dict(zip(terms, (total / self.world).tolist(), strict=True))

    def _reduced(self, values: torch.Tensor, how: Any) -> torch.Tensor:
        if self.world > 1:
            distributed.all_reduce(values, how, self.group)
        return values


ALONE = Ranks()


def _portable(error: Exception) -> Exception:
    """The error as another process can have it."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {sentence(error)}")
