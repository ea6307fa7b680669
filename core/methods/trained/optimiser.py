"""The optimiser of the trained parts: its interface, and plain torch's; a sweep uses a DeepSpeed engine instead."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Optimiser(Protocol):
    """An optimiser of one module: plain torch here, a DeepSpeed engine in a sweep."""

    def update(self, micro_losses: Iterable[Tensor]) -> None:
        """Take one step on the mean of the losses; each is back-propagated before the next one is computed."""


@dataclass(frozen=True)
class Group:
    """A group of parameters with their learning rate and Adam's betas."""

    parameters: list[nn.Parameter]
    rate: float
    betas: tuple[float, float] = (0.9, 0.99)


# (name, module, parameter groups, micro-batches per step) -> the optimiser of the module
MakeOptimiser = Callable[[str, nn.Module, list[Group], int], Optimiser]


class TorchOptimiser:
    """An optimiser that runs torch's Adam in this process."""

    def __init__(self, name: str, module: nn.Module, groups: list[Group], micro_batches: int) -> None:
        self.micro_batches = micro_batches
        self.adam = torch.optim.Adam([{"params": g.parameters, "lr": g.rate, "betas": g.betas} for g in groups])

    def update(self, micro_losses: Iterable[Tensor]) -> None:
        """Take one step of Adam on the mean of the losses."""
        self.adam.zero_grad(set_to_none=True)
        for loss in micro_losses:
            (loss / self.micro_batches).backward()  # type: ignore[no-untyped-call]  # torch's own stub
        self.adam.step()
