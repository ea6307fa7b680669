"""The loss terms of the guided method, one function each; what changes is the score of every attribute.

    L = L_share + e L_effect + w L_fidelity

The last is the adversary that all trained methods share. The first two are ours: they ask of a direction to raise the
attribute it is named after (the classifier's role in Haas et al., arXiv 2303.11073), to change no other, and to be
strong enough to be seen. A direction without an effect keeps every image, so that the last term alone would leave it.
"""

import torch
from torch import Tensor


def effects(change: Tensor, magnitude: Tensor) -> Tensor:
    """Return the effect of each pair's direction on every attribute: [N / 2, A].

    change: of the scores by the shift [N, A], samples 2j and 2j + 1 shifted along the same direction; it is multiplied
    by the sign of magnitude [N] and averaged over a pair.
    """
    signed = change * magnitude.sign()[:, None]
    return (signed[0::2] + signed[1::2]) / 2


def share_loss(effect: Tensor, own: Tensor) -> Tensor:
    """Return 1 - effect on the own attribute / sum of |effects|, mean over pairs: 0 to 2, above 1 where it is lowered.

    effect: [P, A]; own: the number of each pair's own attribute [P].
    """
    return 1 - (_of_own(effect, own) / effect.abs().sum(dim=1).clamp(min=1e-12)).mean()


def effect_loss(effect: Tensor, own: Tensor, magnitude: Tensor, target: float) -> Tensor:
    """Return by which fraction the effect on the own attribute falls short of target * |magnitude|, mean over pairs.

    effect: [P, A]; own: [P]; magnitude: of the samples [2 P], the mean size of a pair counts. What exceeds the target
    is not rewarded: 0.
    """
    size = magnitude.abs()
    wanted = target * (size[0::2] + size[1::2]) / 2
    return torch.relu(1 - _of_own(effect, own) / wanted).mean()


def _of_own(effect: Tensor, own: Tensor) -> Tensor:
    return effect.gather(1, own[:, None])[:, 0]
