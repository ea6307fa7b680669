"""Direction sets of every method, good and bad, drawn once and kept: what benchmarks/objectives.py compares figures on.

    python -m benchmarks.measured_sets toyfaces          draws what is not kept yet; an interrupted run goes on

A base is one set as a method found it, or made worse on purpose. Each base is drawn at several strengths. The images on
which figures are measured and those on which the attribute predictor judges are of different samples, so that noise of
one is not noise of the other.
"""

import argparse
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule
from core.execution.lean import lean
from core.files import atomic_folder
from core.methods import jacobian, learned, pca, random, supervised
from core.metrics import Traversals, calibrate, draw_traversals
from core.metrics.attributes import effects_by_sample
from core.metrics.traversals import SCALES, draw_plain, shown_by
from core.predictors.attributes import Attributes
from core.predictors.embedded import embedded_predictor
from core.randomness import SELECT_SEEDS, generator
from core.samples.cache import SampleCache
from core.samples.draw import Sampling

MODELS = ("toyfaces", "toyfaces-latent")
STEPS, SEEDS = 6, 24
FIGURE_SEEDS = SELECT_SEEDS[:SEEDS]
REFERENCE = SELECT_SEEDS[SEEDS : 5 * SEEDS]
TRUTH_SEEDS = SELECT_SEEDS[1000 : 1000 + SEEDS // 2]  # whose attributes are measured
KEPT = Path("runs/measured_sets")


@dataclass(frozen=True)
class Chain:
    """A model, its chain and its predictor."""

    denoiser: Denoiser
    schedule: Schedule
    attributes: Attributes
    cache: SampleCache

    @classmethod
    def load(cls, model: str, cache: Path) -> "Chain":
        """Open an embedded model."""
        denoiser = lean(Denoiser.from_pretrained(model))
        attributes = embedded_predictor(model, denoiser.device)
        assert attributes is not None
        return cls(denoiser, Schedule.ddim(denoiser, STEPS), attributes, SampleCache(cache))


@dataclass(frozen=True)
class MeasuredSet:
    """One set at one strength: its images, and what it does to the attributes of other samples."""

    base: str
    strength: float
    traversals: Traversals
    effects: Tensor  # [K, P], in standard deviations


def _random(chain: Chain, k: int, seed: int = 0) -> DirectionSet:
    return random.find(chain.denoiser, chain.schedule, random.Settings(k, seed=seed), cache=chain.cache)


def _pca(chain: Chain, k: int, seed: int = 0, joint: bool = True) -> DirectionSet:
    settings = pca.Settings(k, joint=joint, seed=seed)
    return pca.find(chain.denoiser, chain.schedule, settings, cache=chain.cache)


def _jacobian(chain: Chain, k: int, seed: int = 0) -> DirectionSet:
    return jacobian.find(chain.denoiser, chain.schedule, jacobian.Settings(k, seed=seed), cache=chain.cache)


def _supervised(chain: Chain, seed: int = 0, project: bool = False, names: tuple[str, ...] = ()) -> DirectionSet:
    settings = supervised.Settings(names, project=project, seed=seed)
    return supervised.find(chain.denoiser, chain.schedule, settings, chain.attributes, cache=chain.cache)


def _learned(chain: Chain, k: int, scale: float, weight: float, iterations: int, seed: int = 0) -> DirectionSet:
    settings = learned.Settings(
        directions=k, shift_scale=scale, discriminator_weight=weight, iterations=iterations, seed=seed, pool=512
    )
    return learned.find(chain.denoiser, chain.schedule, settings, cache=chain.cache)


def _mixed(directions: DirectionSet, seed: int = 0) -> DirectionSet:
    """Return as many directions, each a random rotation of all: each of them moves everything."""
    k = len(directions)
    rotation = torch.linalg.qr(torch.randn(k, k, generator=generator("mixed", seed), dtype=torch.float64))[0]
    shifts = (directions.table * directions.sigma[:, :, None, None, None]).double()
    return _from_shifts(directions, torch.einsum("jk,k...->j...", rotation, shifts))


def _repeated(directions: DirectionSet, times: int) -> DirectionSet:
    """Return a set in which each direction stands `times` times, as far as there is room."""
    k = len(directions)
    rows = torch.arange(k) % (k // times)
    return DirectionSet(directions.table[rows], directions.sigma[rows], directions.timesteps)


def _from_shifts(like: DirectionSet, shifts: Tensor) -> DirectionSet:
    lengths = shifts.flatten(2).norm(dim=2)  # [K, T]
    table = (shifts / lengths[:, :, None, None, None].clamp(min=1e-12)).float()
    return DirectionSet(table, lengths.float(), like.timesteps)


BASES: dict[str, Callable[[Chain], DirectionSet]] = {
    "random 4": lambda chain: _random(chain, 4),
    "random 8": lambda chain: _random(chain, 8, 1),
    "random 16": lambda chain: _random(chain, 16),
    "random 32": lambda chain: _random(chain, 32, 2),
    "pca 4": lambda chain: _pca(chain, 4),
    "pca 8": lambda chain: _pca(chain, 8, 1),
    "pca 16": lambda chain: _pca(chain, 16),
    "pca 16, other samples": lambda chain: _pca(chain, 16, 2),
    "pca 24": lambda chain: _pca(chain, 24),
    "pca of each step 12": lambda chain: _pca(chain, 12, 3, joint=False),
    "pca 16, mixed": lambda chain: _mixed(_pca(chain, 16)),
    "pca 8, mixed": lambda chain: _mixed(_pca(chain, 8, 1), 1),
    "pca 16, each twice": lambda chain: _repeated(_pca(chain, 16, 4), 2),
    "pca 12, each four times": lambda chain: _repeated(_pca(chain, 12, 5), 4),
    "jacobian 8": lambda chain: _jacobian(chain, 8),
    "jacobian 16": lambda chain: _jacobian(chain, 16, 1),
    "supervised": lambda chain: _supervised(chain),
    "supervised, other samples": lambda chain: _supervised(chain, 1),
    "supervised, projected": lambda chain: _supervised(chain, 2, project=True),
    "supervised, mixed": lambda chain: _mixed(_supervised(chain, 3), 2),
    "supervised 4": lambda chain: _supervised(chain, 4, names=chain.attributes.names[1::2][:4]),
    "learned 4": lambda chain: _learned(chain, 4, 0.5, 0.1, 60),
    "learned 8": lambda chain: _learned(chain, 8, 0.3, 0.1, 60),
    "learned 12, no discriminator": lambda chain: _learned(chain, 12, 1.5, 0.0, 80, 1),
    "learned 16": lambda chain: _learned(chain, 16, 0.5, 0.1, 120),
    "learned 16, weight 10": lambda chain: _learned(chain, 16, 1.0, 10.0, 80, 2),
    "learned 16, ten iterations": lambda chain: _learned(chain, 16, 0.5, 0.1, 10, 3),
    "learned 16, narrow": lambda chain: _learned(chain, 16, 0.1, 0.1, 60, 4),
    "learned 24": lambda chain: _learned(chain, 24, 0.5, 0.1, 80),
}
_CLOSE = 0.1  # relative error of the strength; sets are compared at several
STRENGTHS = (0.1, 0.25, 1.0)


def strengths_of(number: int) -> tuple[float, ...]:
    """Return the strengths at which base `number` is drawn: the usual one, and one or two others in turn."""
    return (0.5, STRENGTHS[number % 3]) + ((0.02,) if number % 8 == 2 else ())


def cases() -> Iterator[tuple[str, float]]:
    """Yield every (base, strength)."""
    for number, base in enumerate(BASES):
        yield from ((base, strength) for strength in strengths_of(number))


def folder_of(kept: Path, model: str, base: str, strength: float) -> Path:
    """Return the folder in which a set is kept; the record of its figures has the same name."""
    return kept / model / f"{base} at {strength:g}".replace(", ", "_").replace(" ", "_")


def draw_all(model: str, kept: Path = KEPT, wanted: Collection[tuple[str, float]] | None = None) -> None:
    """Find, calibrate and draw every set of a model that is not kept yet, or those of them that are `wanted`."""
    chain = Chain.load(model, kept / "cache")
    for number, (base, find) in enumerate(BASES.items()):
        strengths = [each for each in strengths_of(number) if wanted is None or (base, each) in wanted]
        missing = [each for each in strengths if not folder_of(kept, model, base, each).exists()]
        if not missing:
            continue
        directions = find(chain)
        for strength in missing:
            _draw(chain, directions, strength, folder_of(kept, model, base, strength))
            print(f"{model}: {base} at {strength:g}", flush=True)


def _draw(chain: Chain, directions: DirectionSet, strength: float, folder: Path) -> None:
    sampling = Sampling(cache=chain.cache)
    scaled = calibrate(chain.denoiser, chain.schedule, directions, strength, sampling, _CLOSE)
    drawn = draw_traversals(chain.denoiser, chain.schedule, scaled, FIGURE_SEEDS, SCALES, sampling)
    others = draw_traversals(chain.denoiser, chain.schedule, scaled, TRUTH_SEEDS, (-1.0, 1.0), sampling)
    reference = draw_plain(chain.denoiser, chain.schedule, REFERENCE, sampling.batch, chain.cache)
    effect = effects_by_sample(others, chain.attributes, reference).mean(dim=0)
    with atomic_folder(folder) as temporary:
        scaled.write(temporary)
        tensors = {"plain": drawn.plain, "shifted": drawn.shifted, "effects": effect}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "images.safetensors")


def reference_of(chain: Chain) -> Tensor:
    """Return the unshifted samples to compare with: [N, *sample_shape]."""
    return draw_plain(chain.denoiser, chain.schedule, REFERENCE, cache=chain.cache)


def read_all(chain: Chain, model: str, kept: Path = KEPT) -> Iterator[tuple[MeasuredSet, DirectionSet]]:
    """Yield every set that is kept, with its directions."""
    for base, strength in cases():
        folder = folder_of(kept, model, base, strength)
        if folder.exists():
            tensors = load_file(folder / "images.safetensors")
            drawn = Traversals(tensors["plain"], tensors["shifted"], SCALES, shown_by(chain.denoiser))
            yield MeasuredSet(base, strength, drawn, tensors["effects"]), DirectionSet.load(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    draw_all(arguments.model)


if __name__ == "__main__":
    main()
