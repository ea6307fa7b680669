"""Synchronise the processes that share a trial: do work on one of them, and let all of them decide alike.

The processes are ranks of torch.distributed, set up by the code that starts them (orchestrator.workers.worker_group).
They agree through a separate gloo group, which waits on no GPU.
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

_PATIENCE = timedelta(days=7)  # the first rank may work for long; its own watchdog ends it if it hangs


def _nothing() -> None:
    pass


_NO_MORE = -1  # in place of a block's number


class BlockGathering:
    """The gathering of a partitioned network's blocks over the processes of a trial (core.execution.streaming).

    All processes train in step and so call the same block at the same time. Where the first process works by itself, it
    sends the number of each block that it calls, and the others attend: they only provide their parts of these blocks.
    Blocks are numbered in the order in which `gather` was called in this process.

    group: over which the first process sends the numbers; the parts of a block travel between the devices that hold
    them.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._parts: list[Bytes] = []
        self._leading = False

    def gather(self, part: Bytes) -> Bytes:
        """Return a function that gathers a whole block; `part` returns this process's part of it (streaming.Gather)."""
        self._parts.append(part)
        return partial(self._called, len(self._parts) - 1)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Mark the block as work of the first process by itself. The others have to call `attend` meanwhile."""
        self._leading = True
        try:
            yield
        finally:
            self._leading = False
            self._say(_NO_MORE)

    def attend(self) -> None:
        """Provide this process's part of every block that the first process calls, until its work ends."""
        while (number := self._heard()) != _NO_MORE:
            self._called(number)

    def _called(self, number: int) -> Tensor:
        own = self._parts[number]()
        whole = own.new_empty(distributed.get_world_size() * len(own))  # may run out of memory: before the others join
        if self._leading:
            self._say(number)
        distributed.all_gather_into_tensor(whole, own)
        return whole

    def _say(self, number: int) -> None:
        distributed.broadcast(torch.tensor([number]), 0, self._group)

    def _heard(self) -> int:
        number = torch.empty(1, dtype=torch.int64)
        distributed.broadcast(number, 0, self._group)
        return int(number.item())


@dataclass(frozen=True)
class Ranks:
    """One of the processes that share a trial; by default the only one.

    rest: called before this process waits for the first one; gathering: gathers the weights of a partitioned network,
    None for a process alone.
    """

    rank: int = 0
    world: int = 1
    group: Any = None
    rest: Callable[[], None] = _nothing
    gathering: BlockGathering | None = None

    @classmethod
    def join(cls, rest: Callable[[], None] = _nothing) -> "Ranks":
        """Return the ranks of this process's torch.distributed world. Every rank has to call this."""
        rank, world = distributed.get_rank(), distributed.get_world_size()
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(rank, world, group, rest, BlockGathering(group))

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, which works for all."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Run `work` on the first rank and return its result on every rank; an error there is raised on every rank."""
        if self.gathering is None:
            return work()
        outcome: list[Any] = [None]
        if self.is_first:
            try:
                with self.gathering.leading():
                    outcome = [(work(), None)]
            except Exception as error:
                distributed.broadcast_object_list([(None, _portable(error))], 0, self.group)
                raise
        else:
            self.rest()
            self.gathering.attend()
        distributed.broadcast_object_list(outcome, 0, self.group)
        value: T
        value, ended = outcome[0]
        if ended is not None:
            raise ended
        return value

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return bool(self._reduced(torch.tensor([int(flag)]), distributed.ReduceOp.MAX).item())

    def least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers."""
        return int(self._reduced(torch.tensor([number]), distributed.ReduceOp.MIN).item())

    def mean(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Return each term's mean over the ranks. All ranks have the same terms, of equally many samples."""
        values = torch.tensor(list(terms.values()), dtype=torch.float64)
        total = self._reduced(values, distributed.ReduceOp.SUM)
        return dict(zip(terms, (total / self.world).tolist(), strict=True))

    def _reduced(self, values: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.world > 1:
            distributed.all_reduce(values, operation, self.group)
        return values


ALONE = Ranks()


def _portable(error: Exception) -> Exception:
    """Return the error in a form that another process can unpickle."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(sentence(error))
