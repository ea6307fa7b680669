"""Find the directions from which training starts: principal components of h, or pure shifts."""

import torch
from torch import Tensor

from core.methods.trained.shift_control import Parametrisation
from core.randomness import generator
from core.statistics.principal_components import principal_components, store_height

_DAMPING = 1e-3  # of the mean squared length of the slopes


def spread_of(h: Tensor) -> Tensor:
    """Return s_t = root mean square over samples of ||h_t - mean h_t||. h: [T, N, C, H, W] -> [T]."""
    return torch.stack([(step - step.mean(dim=0)).flatten(1).square().sum(dim=1).mean().sqrt() for step in h])


def leading_components(h: Tensor, count: int, parametrisation: Parametrisation) -> Tensor:
    """Return a start for the directions: principal components of h, each step divided by its spread.

    h: [T, N, C, H, W] -> [count, 1, C*H*W] of the pooled steps, or [count, T, C*H*W] of the joint code for per_step.
    Where there are fewer than `count` components, random vectors are added.
    """
    steps, samples = h.shape[:2]
    spread = spread_of(h)
    standard = torch.stack([_standard(h[i], spread[i]) for i in range(steps)])  # [T, N, D]
    joint = parametrisation == "per_step"
    rows = standard.transpose(0, 1).flatten(1) if joint else standard.flatten(0, 1)  # [N, T*D] or [T*N, D]
    kept = min(count, samples - 1, rows.shape[1])
    height = store_height(rows.shape[1], kept, len(rows), itemsize=rows.element_size())
    components = principal_components([rows], kept, height)
    return _filled_up(components.vectors.reshape(kept, steps if joint else 1, -1), count)


def pure_directions(slopes: Tensor, wanted: int, count: int) -> Tensor:
    """Return a start for the directions: the shortest shifts that change one number of a sample and keep the others.

    slopes: of R numbers along a shift, in its coordinates [R, S, C*H*W]. Direction k changes number k by one unit and
    the others by none, to first order: with A the slopes as rows, the columns k < wanted of A^T (A A^T + mu 1)^-1. mu
    keeps slopes that are nearly zero from being followed. Shapes as in `leading_components`. Source: ours.
    """
    rows = slopes.flatten(1).double()  # A
    gram = rows @ rows.T
    damped = gram + _DAMPING * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    shifts = torch.linalg.solve(damped, rows)[:wanted].reshape(-1, *slopes.shape[1:])
    still = shifts.norm(dim=2, keepdim=True) == 0  # at steps outside the window: any direction serves
    return _filled_up(torch.where(still, shifts.mean(dim=1, keepdim=True), shifts).to(slopes), count)


def _standard(h: Tensor, spread: Tensor) -> Tensor:
    """Return the h of one step [N, C, H, W] minus its mean, divided by its spread: [N, C*H*W]."""
    return (h - h.mean(dim=0)).flatten(1) / spread


def _filled_up(directions: Tensor, count: int) -> Tensor:
    """Return directions [k, S, D] as [count, S, D], with random vectors where k < count and where all of one is 0."""
    random = torch.randn(count, *directions.shape[1:], generator=generator("components"), dtype=torch.float64)
    filled = random.to(directions)
    some = directions.flatten(1).any(dim=1)
    filled[: len(directions)][some] = directions[some]
    return filled.float()
