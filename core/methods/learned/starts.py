"""Find the directions from which the learned method starts: principal components of h, or its change with sources."""

import torch
from torch import Tensor

from core.methods.learned.shift_control import Parametrisation
from core.randomness import generator
from core.statistics.principal_components import principal_components, store_height


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


def directions_of_sources(h: Tensor, sources: Tensor, count: int, parametrisation: Parametrisation) -> Tensor:
    """Return a start for the directions: the change of h with each source, flattest first.

    h: [T, N, C, H, W]; sources: their values [N, S] in the same samples (core.methods.learned.sources). A direction is
    the regression of h on a source, as the difference of means is on a label. Shapes as in `leading_components`.
    """
    steps, samples = h.shape[:2]
    spread, sources = spread_of(h), sources[:, :count]
    # One step at a time: h of a large model over all steps is not copied as a whole.
    directions = torch.stack([sources.T.to(h) @ _standard(h[i], spread[i]) for i in range(steps)], dim=1) / samples
    if parametrisation != "per_step":
        directions = directions.mean(dim=1, keepdim=True)
    return _filled_up(directions, count)


def _standard(h: Tensor, spread: Tensor) -> Tensor:
    """Return the h of one step [N, C, H, W] minus its mean, divided by its spread: [N, C*H*W]."""
    return (h - h.mean(dim=0)).flatten(1) / spread


def _filled_up(directions: Tensor, count: int) -> Tensor:
    """Return directions [k, S, D] as [count, S, D], with random vectors added where k < count."""
    missing = count - len(directions)
    random = torch.randn(missing, *directions.shape[1:], generator=generator("components"), dtype=torch.float64)
    return torch.cat([directions, random.to(directions)]).float()
