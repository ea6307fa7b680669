"""Measure whether a fresh network can tell which direction was applied, and how strongly.

Voynov & Babenko (arXiv 2002.03754) report RCA, the accuracy of the reconstructor with which the directions were
trained. This module trains a new reconstructor for every set, the same for all methods, and tests it on samples that it
has not seen. So methods without a reconstructor can be measured too, and no method can profit from a code that only its
own network reads.
"""

import torch
from torch import Tensor

from core.methods.learned.losses import STRENGTH_WEIGHT, direction_loss, strength_loss
from core.methods.learned.reconstructor import Reconstructor
from core.metrics.traversals import Traversals
from core.randomness import generator

TRAIN_SHARE = 2 / 3
BATCH = 64
LEARNING_RATE = 2e-3
WIDTH = 16  # half of the learned method's: this reconstructor has to learn from a thousand pairs in seconds


def identifiability(
    traversals: Traversals, seed: int = 0, iterations: int = 150, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Return (accuracy above chance, strength error) of a fresh reconstructor on held-out samples of the traversals.

    Accuracy above chance is (accuracy - 1/K) / (1 - 1/K): 1 where every direction is recognised, 0 at chance; larger is
    better. It is 0 for a set of one direction. Strength error is the mean absolute error of the scale, in units of the
    largest scale: 0 is exact, smaller is better; always guessing 0 at scales -1, -1/2, 1/2, 1 gives 0.75.

    The reconstructor is trained on the first two thirds of the samples (at least one) and tested on the rest, which
    needs M >= 2. The result depends only on the traversals and `seed`; torch's global generator is neither read nor
    changed.
    Source: RCA of Voynov & Babenko, arXiv 2002.03754; fresh reconstructor, held-out test and chance correction: ours.
    """
    training_samples = max(1, int(len(traversals.plain) * TRAIN_SHARE))
    network = _fresh_reconstructor(traversals, seed, device)
    _train(network, traversals, training_samples, seed, iterations, device)
    right, error = _test(network, traversals, training_samples, device)
    directions = traversals.shifted.shape[1]
    chance = 1 / directions
    return (right - chance) / (1 - chance) if directions > 1 else 0.0, error


def _fresh_reconstructor(traversals: Traversals, seed: int, device: torch.device | str) -> Reconstructor:
    channels, height, width = traversals.plain.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator("identifiability weights", seed).initial_seed())
        network = Reconstructor((channels, height, width), traversals.shifted.shape[1], WIDTH)
    return network.to(device, torch.float32)


@torch.enable_grad()
def _train(
    network: Reconstructor, traversals: Traversals, samples: int, seed: int, iterations: int, device: torch.device | str
) -> None:
    pairs, draw = _pairs(traversals, 0, samples), generator("identifiability batches", seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    network.train()
    for _ in range(iterations):
        chosen = pairs[torch.randint(len(pairs), (BATCH,), generator=draw)]
        x_0, shifted, k, magnitude = _look_up(traversals, chosen, device)
        logits, predicted = network(x_0, shifted)
        loss = direction_loss(logits, k) + STRENGTH_WEIGHT * strength_loss(predicted, magnitude)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()


@torch.no_grad()
def _test(
    network: Reconstructor, traversals: Traversals, first: int, device: torch.device | str
) -> tuple[float, float]:
    """Return (share of directions recognised, mean absolute error of the magnitude) over samples first .. M-1."""
    network.eval()
    right, error = 0.0, 0.0
    pairs = _pairs(traversals, first, len(traversals.plain))
    for part in torch.split(pairs, 4 * BATCH):
        x_0, shifted, k, magnitude = _look_up(traversals, part, device)
        logits, predicted = network(x_0, shifted)
        right += float((logits.argmax(dim=1) == k).sum())
        error += float((predicted - magnitude).abs().sum())
    return right / len(pairs), error / len(pairs)


def _pairs(traversals: Traversals, first: int, last: int) -> Tensor:
    """Return every (sample, direction, scale) of samples first .. last-1, as indices [P, 3]."""
    _, directions, scales = traversals.shifted.shape[:3]
    return torch.cartesian_prod(torch.arange(first, last), torch.arange(directions), torch.arange(scales))


def _look_up(
    traversals: Traversals, pairs: Tensor, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (x_0, shifted x_0, k, magnitude in [-1, 1]) of index triples [P, 3]."""
    m, k, a = pairs.unbind(dim=1)
    magnitude = torch.tensor(traversals.scales, dtype=torch.float32)[a] / max(traversals.scales)
    x_0, shifted = traversals.plain[m].float(), traversals.shifted[m, k, a].float()
    return x_0.to(device), shifted.to(device), k.to(device), magnitude.to(device)
