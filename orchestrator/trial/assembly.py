"""How the processes of a trial put the weights of a partitioned network together (core.execution.streaming).

They train in step, so that all call the same block at the same time. Where one of them works by itself, on what only
one has to do, it says which block it calls, and the others attend: they give their parts, and do nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed

from core.execution.streaming import Bytes

_NO_MORE = -1  # in place of a block's number


class Assembly:
    """The blocks of this process's partitioned network, by the order in which it came to have them.

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
