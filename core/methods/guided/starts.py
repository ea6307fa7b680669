"""Find the directions from which the guided method starts: those of the supervised method, on the training samples."""

import torch
from torch import Tensor

from core.methods.supervised import extremes_of
from core.methods.trained.shift_control import Parametrisation
from core.methods.trained.starts import spread_of

EXTREMES = 0.1  # share of the samples in each of the two groups: 100 of 1024 in core.methods.supervised


def differences_of_means(h: Tensor, scores: Tensor, parametrisation: Parametrisation) -> Tensor:
    """Return the difference of mean h between the samples with most and least of each attribute, in spreads of h.

    h: [T, P, C, H, W]; scores: [P, K] -> [K, 1, C*H*W], the mean over steps, or [K, T, C*H*W] for per_step.
    """
    count = max(1, round(EXTREMES * len(scores)))
    spread = spread_of(h).clamp(min=1e-12)
    directions = []
    for score in scores.T:
        least, most = extremes_of(score, count)
        difference = (h[:, most].mean(dim=1) - h[:, least].mean(dim=1)).flatten(1) / spread[:, None]
        directions.append(difference)
    found = torch.stack(directions)
    return found if parametrisation == "per_step" else found.mean(dim=1, keepdim=True)
