"""The inputs of a network beside x_t and t (prompts as embeddings, classes, sizes), and how guidance uses them.

Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) with weight w runs the network on two rows for a sample,

    output = unconditional + w (conditional - unconditional)        w = 1: the conditional row alone

With several prompts or classes, each sample gets one by its seed, so that values measured or learned over samples are
means over prompts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.errors import UserError


@dataclass(frozen=True)
class Condition:
    """P prompts or classes as inputs of the network. given: name -> [P, ...]; unconditional: name -> [1, ...].

    `unconditional` is empty where there is no guidance. shift_both_rows: whether a shift is added to both rows of a
    sample, or only to the conditional one.
    """

    given: Mapping[str, Tensor] = field(default_factory=dict)
    unconditional: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: float = 1.0
    shift_both_rows: bool = True
    prompt_of_sample: tuple[int, ...] | None = None  # for each sample of a batch, its number among the P; None: 0

    @property
    def guided(self) -> bool:
        """Whether every sample takes two rows."""
        return self.guidance != 1 and bool(self.unconditional)

    @property
    def count(self) -> int:
        """The number P of prompts or classes."""
        return max((len(rows) for rows in self.given.values()), default=1)

    def for_samples(self, seeds: Sequence[int]) -> "Condition":
        """Return the condition of a batch of samples with these seeds: a sample gets the prompt number seed mod P."""
        return (
            self if self.count == 1 else replace(self, prompt_of_sample=tuple(int(seed) % self.count for seed in seeds))
        )

    def at_rows(self, rows: Sequence[int]) -> "Condition":
        """Return the condition of the samples at `rows` of this batch."""
        return (
            self
            if self.prompt_of_sample is None
            else replace(self, prompt_of_sample=tuple(self.prompt_of_sample[row] for row in rows))
        )

    def without_choice(self) -> "Condition":
        """Return the condition of no particular batch: every sample gets the first prompt."""
        return replace(self, prompt_of_sample=None)

    def plain(self) -> "Condition":
        """Return the same condition without guidance."""
        return replace(self, guidance=1.0)

    def rows(self, samples: int) -> dict[str, Tensor]:
        """Return the network's inputs for a batch: name -> [N, ...], or [2 N, ...] with guidance.

        Raises UserError where the prompts were chosen for a batch of another size.
        """
        if self.prompt_of_sample is not None and len(self.prompt_of_sample) != samples:
            raise UserError(f"a batch of {samples} samples; their prompts were chosen for {len(self.prompt_of_sample)}")
        prompts = torch.tensor(self.prompt_of_sample if self.prompt_of_sample is not None else [0] * samples)
        inputs = {name: rows[prompts.to(rows.device)] for name, rows in self.given.items()}
        if not self.guided:
            return inputs
        return {
            name: torch.cat([self.unconditional[name].expand(samples, *rows.shape[1:]), rows])
            for name, rows in inputs.items()
        }

    def guided_output(self, output: Tensor) -> Tensor:
        """Return the guided output [N, ...] from the output of both rows of every sample [2 N, ...]."""
        unconditional, conditional = output.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, conditional and unconditional."""
        return [*self.given.values(), *self.unconditional.values()]

    def to(self, device: torch.device | str) -> "Condition":
        """Return the condition on another device."""
        conditional, unconditional = (
            {k: v.to(device) for k, v in rows.items()} for rows in (self.given, self.unconditional)
        )
        return replace(self, given=conditional, unconditional=unconditional)

    def digest(self) -> str:
        """Return the SHA-256 over all inputs that the condition gives a network."""
        hasher = hashlib.sha256(f"{self.guidance if self.guided else 1}".encode())
        for rows in (self.given, self.unconditional if self.guided else {}):
            for name, tensor in sorted(rows.items()):
                hasher.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
                hasher.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()
