"""Directions of one image: what changes its eps the most, as singular vectors of the decoder's Jacobian.

The image-specific directions of Haas et al. (arXiv 2303.11073). Along the unshifted chain of one image,

    J_t = d (mask * eps_theta(x_t, t | h_t + delta_h)) / d delta_h        at delta_h = 0
    J_t v_k = s_k u_k,   J_t^T u_k = s_k v_k                              direction k is v_k, s_1 >= s_2 >= ...

The encoder does not depend on delta_h and runs once. Haas et al. find the v_k one after another, by power iteration
with deflation. Here a block goes through J and J^T at once and all that came back is kept: a block Krylov method (Musco
& Musco, arXiv 1504.05477), expanded by residuals. To residual 1e-4 it takes 8.6 to 22 times fewer products with J^T J
for 16 directions, 2.5 to 7.8 times for 3 (both embedded models, training image 0, steps 0, 4, 5 and 9 of 10).
"""

import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.chain import one_step
from core.denoiser import Denoiser
from core.directions import DirectionSet
from core.errors import NonFiniteError, UserError
from core.linalg import matched
from core.masks import find_mask
from core.pool import SPREAD_SAMPLES, measured_spread, training_seeds
from core.provenance import provenance
from core.randomness import generator, noise, step_noise
from core.schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """Which image, which step, which part of it, and how exactly."""

    directions: int = 16
    shift_scale: float = 0.5  # what scale 1.0 means, in spreads of h
    # One step, whose directions serve all steps as in the paper (index 0..T-1, "middle" is T // 2), or None: every step
    # has its own, followed from step to step and numbered by the singular values at the first.
    step: int | Literal["middle"] | None = "middle"
    image: int = 0  # number of the image among the run's 256 training samples
    box: tuple[int, int, int, int] | None = None  # what is looked at: left, top, right, bottom in pixels
    mask: str | None = None  # or an image file, white where it is looked at
    tolerance: float = 1e-4  # largest ||J^T u - s v|| / s; the network's own precision is the least that is waited for
    max_passes: int = 50  # a pass sends one block through J and J^T
    oversampling: int = 2  # random vectors in the first block beside those asked for, or beside the guess
    seed: int = 0  # of the training samples and of the random vectors

    def __post_init__(self) -> None:
        for name, least in (("directions", 1), ("image", 0), ("max_passes", 1), ("oversampling", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: got {getattr(self, name)}; allowed: {least} or more")
        if self.image >= SPREAD_SAMPLES:
            raise UserError(f"image: got {self.image}; allowed: 0 to {SPREAD_SAMPLES - 1}, and another seed has others")
        if not self.tolerance > 0:
            raise UserError(f"tolerance: got {self.tolerance}; allowed: more than 0")


@dataclass(frozen=True)
class Spectrum:
    """The largest singular values of a Jacobian, their right singular vectors, and how exact they are."""

    values: Tensor  # [K], float64, descending
    vectors: Tensor  # [K, *h_shape], float64, orthonormal; the entry of largest size is positive
    residuals: Tensor  # [K], ||J^T u - s v|| / s
    converged: bool  # whether all residuals came below the tolerance, or max_passes did not suffice
    passes: int  # blocks that went through J and J^T
    products: int  # vectors that did


class DecoderJacobian:
    """J = d (mask * eps) / d delta_h at one x_t [1, *sample_shape], known by its products with blocks of vectors.

    Memory: the decoder's graph for one sample, and `chunk` vectors on their way through it.
    """

    def __init__(self, denoiser: Denoiser, x_t: Tensor, t: int, mask: Tensor | None = None, chunk: int = 8) -> None:
        with torch.no_grad():
            features = denoiser.encode(x_t, t)

        def looked_at(delta_h: Tensor) -> Tensor:
            eps = denoiser.decode(features, delta_h[None])[0]
            return eps if mask is None else eps * mask.to(eps)

        self.chunk, self._function = chunk, looked_at
        self._origin = torch.zeros_like(features.h[0])
        with _differentiable():
            self._pull = torch.func.vjp(looked_at, self._origin)[1]

    def push(self, v: Tensor) -> Tensor:
        """J v, forward mode. v: [B, *h_shape] -> [B, *sample_shape], in the denoiser's precision."""
        here, at = self._function, (self._origin,)
        # Only the tangents are batched under vmap: the decoder itself runs once a chunk, for one sample.
        with torch.no_grad(), _differentiable():
            pushed: Tensor = torch.vmap(lambda w: torch.func.jvp(here, at, (w,))[1], chunk_size=self.chunk)(v.to(at[0]))
        return pushed

    def pull(self, u: Tensor) -> Tensor:
        """J^T u, reverse mode. u: [B, *sample_shape] -> [B, *h_shape], in the denoiser's precision."""
        with torch.no_grad():
            pulled: Tensor = torch.vmap(lambda w: self._pull(w)[0], chunk_size=self.chunk)(u.to(self._origin))
        return pulled


def spectrum(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int,
    count: int,
    mask: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    oversampling: int = 2,
    tolerance: float = 1e-4,
    max_passes: int = 50,
    chunk: int = 8,
) -> Spectrum:
    """The `count` largest singular values and right singular vectors of J at x_t [1, *sample_shape], timestep t.

    mask: [1, H, W] or None; start: [M, *h_shape], a guess such as the vectors of a neighbouring step; chunk: vectors
    that go through the decoder together (memory against time; the result does not depend on it).
    Memory beside the decoder's: 16 bytes * D * products, D = C*H*W of h.
    Raises UserError where J cannot have so many vectors, NonFiniteError where a product is NaN or infinite.
    """
    check_count(denoiser, count, mask)
    jacobian = DecoderJacobian(denoiser, x_t, t, mask, chunk)
    block = _first_block(denoiser, count + oversampling, start, seed)
    basis = returned = block[:, :0]
    # Below its own rounding, a coarse network would be asked for ever.
    tolerance = max(tolerance, torch.finfo(denoiser.dtype).eps)
    for passes in itertools.count(1):
        block = _orthonormal(block, basis)
        basis = torch.cat([basis, block], dim=1)
        back = jacobian.pull(jacobian.push(block.T.reshape(-1, *denoiser.h_shape)))
        if not torch.isfinite(back).all():
            raise NonFiniteError(f"the Jacobian of eps at timestep {t} holds NaN or infinite numbers")
        returned = torch.cat([returned, back.flatten(1).T.double()], dim=1)
        squares, vectors, errors = _rayleigh_ritz(basis, returned, count)
        residuals = errors.norm(dim=0) / squares.clamp(min=1e-300)
        missing = residuals > tolerance
        if not missing.any() or passes >= max_passes or basis.shape[1] == len(basis):
            break
        block = errors[:, missing]
    rows = _signed(vectors.T).reshape(count, *denoiser.h_shape)
    return Spectrum(squares.sqrt(), rows, residuals, not bool(missing.any()), passes, basis.shape[1])


def check_count(denoiser: Denoiser, count: int, mask: Tensor | None) -> None:
    """Raise UserError where J has fewer singular vectors than `count`."""
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
) -> DirectionSet:
    """The directions of one image, scaled by the measured spread of h at each step.

    x_T: [1, *sample_shape], the start of another image's chain, such as an inverted real one, in place of training
    sample `settings.image`; step_noise: its z [T, 1, *sample_shape], where eta > 0.
    What did not reach the tolerance is in the set all the same: the provenance has `converged` and every residual.
    """
    seeds = training_seeds(SPREAD_SAMPLES, settings.seed)
    x, z = _image(denoiser, schedule, seeds[settings.image], x_T, step_noise)
    found = _along_chain(denoiser, schedule, settings, x, z)
    spread = measured_spread(denoiser, schedule, seeds, batch)
    table = torch.stack([at.vectors for at in found], dim=1).float().cpu().expand(-1, len(schedule), -1, -1, -1)
    sigma = (settings.shift_scale * spread.float()).expand(settings.directions, len(schedule)).clone()
    origin = {
        **provenance("jacobian", denoiser, schedule, asdict(settings)),
        "image_seed": seeds[settings.image] if x_T is None else None,
        "jacobian_steps": _steps(settings, len(schedule)),
        "singular_values": [at.values.tolist() for at in found],
        "residuals": [at.residuals.tolist() for at in found],
        "passes": [at.passes for at in found],
        "products": [at.products for at in found],
        "converged": all(at.converged for at in found),
    }
    return DirectionSet(table.clone(), sigma, schedule.timesteps, provenance=origin)


def _along_chain(
    denoiser: Denoiser, schedule: Schedule, settings: Settings, x: Tensor, z: Tensor | None
) -> list[Spectrum]:
    """The spectra of the steps looked at, each started from the one before and put in its order."""
    steps = _steps(settings, len(schedule))
    mask = find_mask(denoiser, settings.box, settings.mask)
    check_count(denoiser, settings.directions, mask)
    effort = (settings.seed, settings.oversampling, settings.tolerance, settings.max_passes)
    found: list[Spectrum] = []
    for i in range(steps[-1] + 1):
        if i in steps:
            start = found[-1].vectors if found else None
            at_step = spectrum(denoiser, x, schedule.timesteps[i], settings.directions, mask, start, *effort)
            found.append(at_step if start is None else followed(at_step, start))
        x = one_step(denoiser, schedule, i, x, None, "symmetric", None if z is None else z[i])
    return found


def followed(after: Spectrum, before: Tensor) -> Spectrum:
    """The spectrum with row k the vector that continues before[k], on its side."""
    order, signs = matched(after.vectors, before)
    vectors = after.vectors[order] * signs[:, None, None, None]
    return replace(after, values=after.values[order], vectors=vectors, residuals=after.residuals[order])


def _steps(settings: Settings, count: int) -> list[int]:
    """The steps whose Jacobian is looked at."""
    if settings.step is None:
        return list(range(count))
    step = count // 2 if settings.step == "middle" else settings.step
    if not 0 <= step < count:
        raise UserError(f"jacobian step: got {step}; a chain of {count} steps has steps 0 to {count - 1}")
    return [step]


def _image(
    denoiser: Denoiser, schedule: Schedule, seed: int, x_T: Tensor | None, z: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(x_T, z) of the image: drawn from its seed, or as given and checked."""
    dtype = torch.promote_types(denoiser.dtype, torch.float32)
    if x_T is None:
        x_T = noise([seed], denoiser.sample_shape, dtype, denoiser.device)
        if schedule.eta > 0:
            z = step_noise([seed], denoiser.sample_shape, len(schedule), dtype, denoiser.device)
    shape = [1, *denoiser.sample_shape]
    if list(x_T.shape) != shape:
        raise UserError(f"x_T has shape {list(x_T.shape)}; an image of model '{denoiser.name}' has {shape}")
    if schedule.eta > 0 and z is None:
        raise UserError(f"a chain with eta {schedule.eta} needs step_noise (core.randomness.step_noise)")
    shape = [len(schedule), *shape]
    if z is not None and list(z.shape) != shape:
        raise UserError(f"step_noise has shape {list(z.shape)}; this chain needs {shape}")
    return x_T.to(denoiser.device), None if z is None else z.to(denoiser.device)


def _first_block(denoiser: Denoiser, width: int, start: Tensor | None, seed: int) -> Tensor:
    """[D, width] float64: the guess, and random vectors for the rest."""
    shape = (width, math.prod(denoiser.h_shape))
    block = torch.randn(shape, generator=generator("jacobian", seed), dtype=torch.float64).to(denoiser.device)
    if start is not None:
        block = torch.cat([start.flatten(1).to(block), block])[:width]
    return block.T


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Columns that span `block` outside of `basis`, orthonormal; no more than there is room for."""
    block = block[:, : len(basis) - basis.shape[1]]
    for _ in range(2):  # once loses orthogonality where little is left of a column; twice is enough
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def _rayleigh_ritz(basis: Tensor, returned: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best that the basis Q [D, n] knows, given A Q = J^T J Q: (s^2 [K], v [D, K], A v - s^2 v [D, K])."""
    small = basis.T @ returned
    squares, mixtures = torch.linalg.eigh((small + small.T) / 2)
    squares, mixtures = squares[-count:].flip(0).clamp(min=0), mixtures[:, -count:].flip(1)
    vectors = basis @ mixtures
    return squares, vectors, returned @ mixtures - vectors * squares


def _signed(rows: Tensor) -> Tensor:
    """Each row turned so that its entry of largest size is positive: a singular vector's own sign is arbitrary."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -rows, rows)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention by its plain formula: the fused kernels have no forward-mode derivative (pytorch issue 117629)."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # torch 2.13's forward mode, on its first use, calls its own deprecated scripting.
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        yield
