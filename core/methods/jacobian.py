"""Find the directions that change eps of one image most, as right singular vectors of the decoder's Jacobian.

eps is the predicted noise. These are the image-specific directions of Haas et al. (arXiv 2303.11073). Along the
unshifted chain of one image,

    J_t = d (mask * eps_theta(x_t, t | h_t + delta_h)) / d delta_h        at delta_h = 0
    J_t v_k = s_k u_k,   J_t^T u_k = s_k v_k                              direction k is v_k, s_1 >= s_2 >= ...

The encoder does not depend on delta_h and runs once; the decoder is linearised once (core.execution.linearised). Haas
et al. find the v_k one after another, by power iteration with deflation. Here all products with J^T J are kept, and the
basis grows by the residuals of the vectors that are not exact yet: a (block) Krylov method (Musco & Musco, arXiv
1504.05477). Narrow blocks take the fewest products. Compared with power iteration, for the top 3 to residual 1e-4 on
the embedded models and one CPU thread: 6 to 12 times fewer products, 14 to 27 times fewer FLOPs, 22 to 70 times less
time (benchmarks/results/jacobian.md).

A block of width B separates at most B equal singular values. With a coarse tolerance, a block of one vector may miss
one of two values that are nearly equal: where that matters, use a wider block or a tolerance of 1e-3.
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from core.chain.sampling import start_of
from core.chain.schedule import Schedule
from core.chain.step import one_step
from core.directions.direction_set import DirectionSet
from core.directions.provenance import provenance
from core.errors import NonFiniteError, UserError
from core.execution.linearised import DecoderJacobian, linearised
from core.methods.setting_checks import refuse_below
from core.model.denoiser import Denoiser
from core.pictures.masks import find_mask
from core.progress import advanced
from core.randomness import generator
from core.samples.cache import SampleCache
from core.samples.training import SPREAD_SAMPLES, measured_spread, training_seeds
from core.statistics.principal_components import matched

_ROUNDING = 1e-14
_RANDOM_PART = 0.1  # weight of the random part of a start from a guess: enough to find what the guess lacks


@dataclass(frozen=True)
class Settings:
    """The settings of the method: the image, the step, the region of the image, and the exactness."""

    directions: int = 16
    shift_scale: float = 0.5  # length of the shift at scale 1.0, in spreads of h
    # One step (index 0..T-1, "middle" is T // 2), whose directions serve all steps as in the paper, or None: every step
    # has its own, followed from step to step and numbered by the singular values at the first.
    step: int | Literal["middle"] | None = "middle"
    image: int = 0  # number of the image among the run's 256 training samples
    box: tuple[int, int, int, int] | None = None  # region of the image: left, top, right, bottom in pixels
    mask: str | None = None  # or an image file that is white in the region
    tolerance: float = 1e-4  # largest ||J^T u - s v|| / s; raised to the precision of the network where that is coarser
    max_passes: int = 300  # a pass multiplies one block with J and J^T
    block: int = 1  # vectors in a block: so many equal singular values are separated; wider blocks take more products
    seed: int = 0  # of the training samples and of the random vectors

    def __post_init__(self) -> None:
        refuse_below(self, directions=1, image=0, max_passes=1, block=1, seed=0)
        if self.image >= SPREAD_SAMPLES:
            raise UserError(f"image: got {self.image}; allowed: 0 to {SPREAD_SAMPLES - 1}, and another seed has others")
        if not self.tolerance > 0:
            raise UserError(f"tolerance: got {self.tolerance}; allowed: more than 0")


@dataclass(frozen=True)
class Spectrum:
    """The largest singular values of a Jacobian, their right singular vectors, and their residuals."""

    values: Tensor  # [K], float64, descending
    vectors: Tensor  # [K, *h_shape], float64, orthonormal; the entry of largest size is positive
    residuals: Tensor  # [K], ||J^T u - s v|| / s
    converged: bool  # whether all residuals are within the tolerance; False where max_passes were not enough
    passes: int  # blocks that were multiplied with J and J^T
    products: int  # vectors in these blocks


def spectrum(
    denoiser: Denoiser,
    x_t: Tensor,
    t: float,
    count: int,
    mask: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    block: int = 1,
    tolerance: float = 1e-4,
    max_passes: int = 300,
) -> Spectrum:
    """Return the `count` largest singular values and right singular vectors of J at x_t [1, *sample_shape], timestep t.

    mask: [1, H, W] or None; start: [M, *h_shape], a guess such as the vectors of a neighbouring step.
    block: vectors that are added at a time.
    Memory in addition to the decoder's: 16 bytes * D * products, D = C*H*W of h.
    Raises UserError where J has fewer vectors than `count`, NonFiniteError where a product is NaN or infinite.
    """
    check_count(denoiser, count, mask)
    jacobian = DecoderJacobian(denoiser, x_t, t, mask)
    random = generator("jacobian", seed)
    added = _first_block(denoiser, block, start, random)
    basis = returned = added[:, :0]
    # A tolerance below the network's own rounding could never be reached.
    tolerance = max(tolerance, torch.finfo(denoiser.dtype).eps)
    for passes in itertools.count(1):
        added = _orthonormal(added, basis)
        basis = torch.cat([basis, added], dim=1)
        back = jacobian.vjp(jacobian.jvp(added.T.reshape(-1, *denoiser.h_shape)))
        if not torch.isfinite(back).all():
            raise NonFiniteError(f"the Jacobian of eps at timestep {t} holds NaN or infinite numbers")
        returned = torch.cat([returned, back.flatten(1).T.double()], dim=1)
        squares, vectors, errors = _rayleigh_ritz(basis, returned, count)
        sizes = errors.norm(dim=0)
        residuals = sizes / squares.clamp(min=1e-300)
        missing = residuals > tolerance
        enough = len(squares) == count
        if enough and (not missing.any() or passes >= max_passes) or basis.shape[1] == len(basis):
            break
        # Where the residuals are only rounding, as once all nonzero values are found, random vectors extend the basis.
        leading = errors[:, missing & (sizes > _ROUNDING * squares[0])][:, :block]
        added = leading if leading.shape[1] else _random_block(denoiser, block, random)
    rows = _signed(vectors.T).reshape(count, *denoiser.h_shape)
    return Spectrum(squares.sqrt(), rows, residuals, not bool(missing.any()), passes, basis.shape[1])


def check_count(denoiser: Denoiser, count: int, mask: Tensor | None) -> None:
    """Raise UserError where J, with this mask, has fewer singular vectors than `count`."""
    size = math.prod(denoiser.h_shape)
    if count > size:
        raise UserError(f"directions: got {count}; h has {size} dimensions, which is the most that can be orthonormal")
    seen = math.prod(denoiser.sample_shape) if mask is None else denoiser.sample_shape[0] * int(mask.count_nonzero())
    if count > seen:
        raise UserError(f"directions: got {count}; only {seen} values of eps are looked at, and each gives one at most")


@torch.no_grad()
def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    x_T: Tensor | None = None,
    step_noise: Tensor | None = None,
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Find the directions of one image, scaled by the measured spread of h at each step.

    x_T: [1, *sample_shape], the start of another image's chain, such as an inverted real one; it replaces training
    sample `settings.image`. step_noise: its z [T, 1, *sample_shape], where steps add noise.
    batch, cache: as in `draw`, for the samples on which the spread is measured.
    The set also contains vectors that did not reach the tolerance: its provenance has `converged` and every residual.
    """
    seeds = training_seeds(SPREAD_SAMPLES, settings.seed)
    x, z = _image(denoiser, schedule, seeds[settings.image], x_T, step_noise)
    seen = denoiser.for_samples([seeds[settings.image]])  # with this sample's own prompt, where there are several
    spectra = _along_chain(seen, schedule, settings, x, z)
    spread = measured_spread(denoiser, schedule, seeds, batch, cache)
    table = torch.stack([at.vectors for at in spectra], dim=1).float().cpu().expand(-1, len(schedule), -1, -1, -1)
    sigma = (settings.shift_scale * spread.float()).expand(settings.directions, len(schedule)).clone()
    origin = {
        **provenance("jacobian", denoiser, schedule, asdict(settings)),
        "image_seed": seeds[settings.image] if x_T is None else None,
        "jacobian_steps": _steps(settings, len(schedule)),
        "singular_values": [at.values.tolist() for at in spectra],
        "residuals": [at.residuals.tolist() for at in spectra],
        "passes": [at.passes for at in spectra],
        "products": [at.products for at in spectra],
        "converged": all(at.converged for at in spectra),
    }
    return DirectionSet(table.clone(), sigma, schedule.timesteps, provenance=origin)


def _along_chain(
    denoiser: Denoiser, schedule: Schedule, settings: Settings, x: Tensor, z: Tensor | None
) -> list[Spectrum]:
    """Return the spectra of the chosen steps, each started from the previous one and put in its order."""
    steps = _steps(settings, len(schedule))
    mask = find_mask(denoiser, settings.box, settings.mask)
    check_count(denoiser, settings.directions, mask)
    effort = (settings.seed, settings.block, settings.tolerance, settings.max_passes)
    network = linearised(denoiser)
    spectra: list[Spectrum] = []
    for i in range(steps[-1] + 1):
        if i in steps:
            start = spectra[-1].vectors if spectra else None
            at_step = spectrum(network, x, schedule.timesteps[i], settings.directions, mask, start, *effort)
            spectra.append(at_step if start is None else aligned_to(at_step, start))
            advanced("steps", len(spectra), len(steps))
        x = one_step(denoiser, schedule, i, x, None, "symmetric", None if z is None else z[i])
    return spectra


def aligned_to(after: Spectrum, before: Tensor) -> Spectrum:
    """Return the spectrum in the order and with the signs of `before`: row k continues before[k]."""
    order, signs = matched(after.vectors, before)
    vectors = after.vectors[order] * signs[:, None, None, None]
    return replace(after, values=after.values[order], vectors=vectors, residuals=after.residuals[order])


def _steps(settings: Settings, count: int) -> list[int]:
    """Return the indices of the steps whose Jacobian is used. Raises UserError where settings.step is out of range."""
    if settings.step is None:
        return list(range(count))
    step = count // 2 if settings.step == "middle" else settings.step
    if not 0 <= step < count:
        raise UserError(f"jacobian step: got {step}; a chain of {count} steps has steps 0 to {count - 1}")
    return [step]


def _image(
    denoiser: Denoiser, schedule: Schedule, seed: int, x_T: Tensor | None, z: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return (x_T, z) of the image: drawn from `seed`, or as given and checked."""
    if x_T is None:
        _, x_T, z = start_of(denoiser, schedule, [seed])
    shape = [1, *denoiser.sample_shape]
    if list(x_T.shape) != shape:
        raise UserError(f"x_T has shape {list(x_T.shape)}; an image of model '{denoiser.name}' has {shape}")
    if schedule.stochastic and z is None:
        raise UserError(f"{schedule} needs step_noise (core.randomness.step_noise)")
    shape = [len(schedule), *shape]
    if z is not None and list(z.shape) != shape:
        raise UserError(f"step_noise has shape {list(z.shape)}; this chain needs {shape}")
    return x_T.to(denoiser.device), None if z is None else z.to(denoiser.device)


def _first_block(denoiser: Denoiser, width: int, start: Tensor | None, random: torch.Generator) -> Tensor:
    """Return the first block [D, width], float64: random vectors with the vectors of the guess added to them.

    A Krylov space that starts from the sum of the guess contains all of the guess; the random part finds the rest.
    """
    block = _random_block(denoiser, width, random)
    if start is not None:
        guess = start.flatten(1).to(block)
        for j in range(min(width, len(guess))):
            block[:, j] = _RANDOM_PART * block[:, j] + guess[j::width].sum(0)
    return block


def _random_block(denoiser: Denoiser, width: int, random: torch.Generator) -> Tensor:
    """Return random unit columns [D, width], float64."""
    block = torch.randn(width, math.prod(denoiser.h_shape), generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(block).T.to(denoiser.device)


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal columns that span `block` outside of `basis`; at most as many as the dimension leaves."""
    block = block[:, : len(basis) - basis.shape[1]]
    for _ in range(2):  # one pass loses orthogonality where little is left of a column; two are enough
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def _rayleigh_ritz(basis: Tensor, returned: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best approximations in the basis Q [D, n]: (s^2 [K], v [D, K], A v - s^2 v [D, K]), K = min(count, n).

    returned: A Q = J^T J Q.
    """
    small = (basis.T @ returned).cpu()  # it has some dozens of rows: too small for an accelerator
    squares, mixtures = torch.linalg.eigh((small + small.T) / 2)
    squares, mixtures = squares[-count:].flip(0).clamp(min=0).to(basis), mixtures[:, -count:].flip(1).to(basis)
    vectors = basis @ mixtures
    return squares, vectors, returned @ mixtures - vectors * squares


def _signed(rows: Tensor) -> Tensor:
    """Return each row with its entry of largest size made positive: the sign of a singular vector is arbitrary."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -rows, rows)
