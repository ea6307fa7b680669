"""Measure how much a fresh network can tell of the direction that was applied, and of how strongly.

Voynov & Babenko (arXiv 2002.03754) report RCA, the accuracy of the reconstructor with which the directions were
trained. This module trains new reconstructors for every set, the same for all methods, and tests them on samples that
they have not seen. So methods without a reconstructor can be measured too, and no method can profit from a code that
only its own network reads. The networks see what a viewer sees: images in 8-bit levels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.methods.learned.losses import STRENGTH_WEIGHT, direction_loss, strength_loss
from core.methods.learned.reconstructor import Reconstructor
from core.metrics.bootstrap import Figure, of_mean
from core.metrics.traversals import Traversals
from core.randomness import generator

BATCH = 64
ITERATIONS = 120  # of each of the two networks, for up to 16 directions; for more, in proportion
PASSES = 80  # at most, over the pairs of a half; few pairs would else be gone over hundreds of times
LEARNING_RATE = 2e-3
WIDTH = 16  # half of the learned method's: this reconstructor has to learn from a thousand pairs in seconds
# By how much the logits are divided: how sure a network may be of its answer. 0 of its inverse is not sure at all.
_SURENESS = torch.cat([torch.zeros(1), torch.logspace(-2, 0.5, 21)]).double()


@dataclass(frozen=True)
class Identified:
    """What two reconstructors tell of each sample, each of the half on which the other was trained."""

    bits: Tensor  # [M, K]: log2 of K times the probability that the answer gave to the right direction
    error: Tensor  # [M, K]: absolute error of the scale, in units of the largest

    @property
    def information(self) -> Figure:
        """Bits of information about the direction in the answer: mean over samples and directions of `bits`.

        A lower bound of the mutual information of direction and image (Barber & Agakov 2003). Range: about 0, where the
        network can tell nothing, to log2 K, where it always can.
        """
        return of_mean(self.bits)

    @property
    def told_apart(self) -> Figure:
        """The number of directions that are told apart: 2 to the power of the information. Range: about 1 to K.

        As many directions, always recognised and equally frequent, would give as much information.
        """
        bits = self.information
        value = 2**bits.value
        return Figure(value, 2**bits.replicates, bits.samples, value * (2**bits.apart - 1), bits.others)

    @property
    def by_direction(self) -> Tensor:
        """The probability that the answer gives to each direction where it is right, geometric mean: [K]."""
        return 2 ** self.bits.mean(dim=0) / self.bits.shape[1]

    @property
    def strength_error(self) -> Figure:
        """Mean absolute error of the scale, in units of the largest scale: 0 is exact, smaller is better.

        Always guessing 0 at scales -1, -1/2, 1/2, 1 gives 0.75.
        """
        return of_mean(self.error)


def identifiability(
    traversals: Traversals, seed: int = 0, iterations: int | None = None, device: torch.device | str = "cpu"
) -> Identified:
    """Train a fresh reconstructor on each half of the samples, and return what it tells of the other half.

    A network is surer of its answers than it has reason to be. So its logits are divided by one number, that which
    gives the best answers on the other samples of its test half: a network that can tell nothing learns to say so.
    Needs M >= 2. iterations: of each network (None: `iterations_for`). The result depends only on the traversals and
    `seed`; torch's global generator is neither read nor changed.
    Source: RCA of Voynov & Babenko, arXiv 2002.03754; fresh networks, held-out samples and information: ours.
    """
    samples, directions, scales = traversals.shifted.shape[:3]
    halves = (range(samples // 2), range(samples // 2, samples))
    bits, error = torch.empty(samples, directions).double(), torch.empty(samples, directions).double()
    for part, (training, test) in enumerate((halves, halves[::-1])):
        network = _fresh_reconstructor(traversals, seed, part, device)
        rounds = iterations_for(directions, len(training) * directions * scales) if iterations is None else iterations
        _train(network, traversals, training, (seed, part), rounds, device)
        logits, errors = _test(network, traversals, test, device)
        rows = slice(test.start, test.stop)
        bits[rows] = _bits(logits.reshape(len(test), directions, scales, directions))
        error[rows] = errors.reshape(len(test), directions, scales).mean(dim=2)
    return Identified(bits, error)


def iterations_for(directions: int, pairs: int) -> int:
    """Return for how many iterations a network is trained to tell `directions` directions apart, on so many pairs."""
    return min(ITERATIONS * math.ceil(directions / 16), math.ceil(PASSES * pairs / BATCH))


def _bits(logits: Tensor) -> Tensor:
    """Return log2 of K times the probability of the right direction, mean over scales: [M, K], of [M, K, A, K]."""
    directions = logits.shape[1]
    right = torch.arange(directions)[:, None, None].expand(-1, logits.shape[2], 1)  # [K, A, 1]
    scores = torch.stack(
        [
            (logits * sure).log_softmax(dim=3).gather(3, right.expand(len(logits), -1, -1, -1))[..., 0].mean(dim=2)
            for sure in _SURENESS
        ]
    ) / math.log(2) + math.log2(directions)  # [sureness, M, K]
    by_sample = scores.mean(dim=2)
    others = by_sample.sum(dim=1, keepdim=True) - by_sample
    best = others.argmax(dim=0)  # [M]; the first, which is not sure at all, where there are no other samples
    return scores[best, torch.arange(len(best))]


def _fresh_reconstructor(traversals: Traversals, seed: int, part: int, device: torch.device | str) -> Reconstructor:
    channels, height, width = traversals.plain.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator("identifiability weights", seed, part).initial_seed())
        network = Reconstructor((channels, height, width), traversals.shifted.shape[1], WIDTH)
    return network.to(device, torch.float32)


@torch.enable_grad()
def _train(
    network: Reconstructor,
    traversals: Traversals,
    samples: range,
    seed: tuple[int, int],
    iterations: int,
    device: torch.device | str,
) -> None:
    pairs, draw = _pairs(traversals, samples), generator("identifiability batches", *seed)
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
    network: Reconstructor, traversals: Traversals, samples: range, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return (logits [P, K], absolute errors of the magnitude [P]) of every pair of the samples, on the CPU."""
    network.eval()
    logits, errors = [], []
    for part in torch.split(_pairs(traversals, samples), 4 * BATCH):
        x_0, shifted, _, magnitude = _look_up(traversals, part, device)
        which, predicted = network(x_0, shifted)
        logits.append(which.double().cpu())
        errors.append((predicted - magnitude).abs().double().cpu())
    return torch.cat(logits), torch.cat(errors)


def _pairs(traversals: Traversals, samples: range) -> Tensor:
    """Return every (sample, direction, scale) of these samples, as indices [P, 3]."""
    _, directions, scales = traversals.shifted.shape[:3]
    return torch.cartesian_prod(
        torch.arange(samples.start, samples.stop), torch.arange(directions), torch.arange(scales)
    )


def _look_up(
    traversals: Traversals, pairs: Tensor, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (x_0, shifted x_0, k, magnitude in [-1, 1]) of index triples [P, 3]."""
    m, k, a = pairs.unbind(dim=1)
    magnitude = torch.tensor(traversals.scales, dtype=torch.float32)[a] / max(traversals.scales)
    x_0, shifted = traversals.plain[m].float(), traversals.shifted[m, k, a].float()
    return x_0.to(device), shifted.to(device), k.to(device), magnitude.to(device)
