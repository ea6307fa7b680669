"""Shift control: the directions that trained methods optimise, and random ones.

    delta_h = magnitude * s_t * d_k,t        ||d_k,t|| = 1

delta_h does not depend on the image, so a direction is the same for every image ("global", Zhang et al., arXiv
2310.09912), and it is linear in the magnitude ("scalable"). s_t is the measured spread of h at step t, so a magnitude
of 1 is the distance of a typical sample from the mean, at every step and in every model.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.randomness import generator

Parametrisation = Literal["shared", "per_step", "time"]
PARAMETRISATIONS = ("shared", "per_step", "time")


class ShiftControl(nn.Module):
    """A module of K learnable directions of h_shape over the steps of a chain.

    parametrisation: "shared" (one direction for all steps), "per_step" (one for each), or "time" (a shared one with a
    correction by a network of the timestep). orthonormal: the K directions of a step are made orthonormal by QR.
    spread: [T], of h at each step. start: [K, 1 or T, C*H*W], or None for random directions drawn from `seed`.
    Raises UserError for more orthonormal directions than h has dimensions.
    """

    spread: Tensor
    time_features: Tensor

    def __init__(
        self,
        directions: int,
        h_shape: tuple[int, int, int],
        spread: Tensor,
        timesteps: tuple[float, ...],
        parametrisation: Parametrisation = "shared",
        orthonormal: bool = True,
        start: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size = math.prod(h_shape)
        if orthonormal and directions > size:
            raise UserError(
                f"directions: got {directions}; h has {size} dimensions, which is the most that can be orthonormal"
            )
        self.h_shape, self.timesteps = h_shape, timesteps
        self.parametrisation, self.orthonormal = parametrisation, orthonormal
        steps = len(timesteps) if parametrisation == "per_step" else 1
        if start is None:
            start = torch.randn(directions, steps, size, generator=generator("directions", seed))
        # Coordinates have unit variance, so that one learning rate fits every model.
        scale = size**0.5 / start.norm(dim=2, keepdim=True).clamp(min=1e-12)
        self.coordinates = nn.Parameter((start * scale).expand(directions, steps, size).clone())
        self.register_buffer("spread", spread.float().clone())
        if parametrisation == "time":
            self._add_time_network(directions, size, seed)

    def _add_time_network(self, directions: int, size: int, seed: int, width: int = 128) -> None:
        frequencies = torch.exp(torch.linspace(0, math.log(1000.0), 16))
        phase = torch.tensor(self.timesteps).float()[:, None] / 1000 * frequencies
        self.register_buffer("time_features", torch.cat([phase.sin(), phase.cos()], dim=1))  # [T, 32]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.direction_embedding = nn.Embedding(directions, width)
            self.time_embedding = nn.Linear(32, width)
            self.correction = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self) -> Tensor:
        """Return unit directions [K, S, C, H, W], S = 1 where shared by all steps, else T.

        Parameters are read only here: an engine that partitions them gathers them only while a module is called.
        """
        # At least float32: orthonormality is lost in half precision.
        coordinates = self.coordinates.to(torch.promote_types(self.coordinates.dtype, torch.float32))
        if self.parametrisation == "time":
            every = torch.arange(len(coordinates), device=coordinates.device)
            features = self.time_features.to(self.time_embedding.weight.dtype)  # engines cast no buffers
            hidden = self.direction_embedding(every)[:, None] + self.time_embedding(features)
            coordinates = coordinates + self.correction(hidden).to(coordinates.dtype)
        if self.orthonormal:
            basis, upper = torch.linalg.qr(coordinates.permute(1, 2, 0))  # [S, D, K]
            # QR is unique up to signs; keep each direction on the side of its own coordinates.
            basis = basis * torch.sign(torch.diagonal(upper, dim1=1, dim2=2))[:, None]
            unit = basis.permute(2, 0, 1)
        else:
            unit = coordinates / coordinates.norm(dim=2, keepdim=True)
        table: Tensor = unit.reshape(*unit.shape[:2], *self.h_shape)
        return table

    def at(self, k: Tensor, magnitude: Tensor) -> Callable[[int], Tensor]:
        """Return the shift (core.chain.sampling.Shift) of directions k [N] at magnitudes [N], in spreads of h."""
        chosen: Tensor = self()[k]  # [N, S, C, H, W]

        def delta_h(i: int) -> Tensor:
            direction = chosen[:, i if chosen.shape[1] > 1 else 0]
            return (magnitude * self.spread[i])[:, None, None, None] * direction

        return delta_h
