"""Learn directions: train shift control, reconstructor and discriminator together through the whole chain.

A reconstruction of Zhang et al. (arXiv 2310.09912) from its abstract and its ancestor for GANs (Voynov & Babenko,
arXiv 2002.03754). One iteration, on a batch of samples x_0 with known noise x_T:

    k ~ uniform, m ~ uniform in +-[floor, 1]                         a direction and a magnitude for each sample
    x_0' = chain(x_T, delta_h = m * shift_scale * s_t * d_k,t)       the shifted sample
    (k^, m^) = reconstructor(x_0, x_0')
    shift control and reconstructor descend  CE(k^, k) + 0.25 * 6 |m^ - m| + w softplus(-discriminator(x_0'))
                                             + c (1 - cos of what the shift does to two samples)
    the discriminator descends               softplus(-discriminator(x_0)) + softplus(discriminator(x_0'))

The denoiser stays frozen. The gradient of x_0' goes back through every step; core.chain.gradient has its cost.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.chain.gradient import FullGraph, GradientPolicy
from core.chain.sampling import sample
from core.chain.schedule import Schedule
from core.chain.step import INJECTIONS, Injection
from core.directions.direction_set import DirectionSet
from core.directions.provenance import provenance
from core.errors import NonFiniteError, UserError
from core.methods.learned import losses
from core.methods.learned.discriminator import Discriminator
from core.methods.learned.optimiser import Group, MakeOptimiser, Optimiser, TorchOptimiser
from core.methods.learned.reconstructor import Reconstructor
from core.methods.learned.shift_control import PARAMETRISATIONS, Parametrisation, ShiftControl
from core.methods.learned.starts import flattest_directions, leading_components, spread_of
from core.model.denoiser import Denoiser
from core.randomness import generator, step_noise
from core.samples.cache import SampleCache
from core.samples.training import Pool, draw_pool, training_seeds

Lead = Callable[[Callable[[], Any]], Any]  # runs a function in one worker and returns its result in all of them
Start = Literal["flattest", "pca", "random"]
STARTS = ("flattest", "pca", "random")


@dataclass(frozen=True)
class Settings:
    """The settings of the method. Magnitudes are in spreads of h, rates are Adam's learning rates."""

    directions: int = 16
    shift_scale: float = 0.5  # largest magnitude
    discriminator_weight: float = 0.1  # 0: no discriminator
    consistency_weight: float = 3.0  # 0: samples are not compared
    iterations: int = 400
    batch: int = 16
    micro_batch: int | None = None  # None: the whole batch at once
    pool: int = 1024  # number of training samples; drawn once, used repeatedly
    injection: Injection = "symmetric"
    window: tuple[int, int] | None = None
    parametrisation: Parametrisation = "shared"
    orthonormal: bool = True
    start: Start = "flattest"  # the flattest projections of h; "pca": its principal components; or "random"
    strength_floor: float = 1 / 6  # smallest magnitude, as a fraction of the largest
    direction_rate: float = 0.02
    reconstructor_rate: float = 0.001
    discriminator_rate: float = 0.0002
    seed: int = 0
    gradient: GradientPolicy = field(default_factory=FullGraph)

    def __post_init__(self) -> None:
        micro = self.micro_batch or self.batch
        if self.batch % micro:
            raise UserError(f"micro_batch: got {micro}; it must divide the batch of {self.batch}")
        for name, value, allowed in (
            ("injection", self.injection, INJECTIONS),
            ("parametrisation", self.parametrisation, PARAMETRISATIONS),
            ("start", self.start, STARTS),
        ):
            if value not in allowed:
                raise UserError(f"{name}: got '{value}'; allowed: {', '.join(allowed)}")
        if self.consistency_weight > 0 and micro % 2:
            raise UserError(
                f"micro_batch: got {micro}; samples are compared in pairs: give an even number, or consistency_weight 0"
            )
        if self.directions < 2:
            raise UserError(f"directions: got {self.directions}; the reconstructor needs at least 2 to tell apart")


class ShiftAndReconstructor(nn.Module):
    """The two modules that are optimised together: shift control and reconstructor."""

    def __init__(self, shift: ShiftControl, reconstructor: Reconstructor) -> None:
        super().__init__()
        self.shift, self.reconstructor = shift, reconstructor


def _in_this_process(work: Callable[[], Any]) -> Any:
    return work()


@dataclass(frozen=True)
class Workers:
    """The processes that train together, as one of them sees them.

    make_optimiser: makes an optimiser over all of them; rank, world: the number of this one, and of all; lead: runs
    work in one of them and returns its result in all.
    """

    make_optimiser: MakeOptimiser = TorchOptimiser
    rank: int = 0
    world: int = 1
    lead: Lead = _in_this_process


class Learner:
    """A run of the learned method. `iterate(n)` runs iteration n, `directions()` returns the current set.

    Iteration n draws its samples, directions and magnitudes only from (seed, n), so a resumed run continues exactly
    where the interrupted one stopped.
    workers: the processes that train together; each takes its share of every batch, and one draws the pool for all.
    draw_batch: samples of the pool that are drawn at a time; cache: where they are read and kept. The steps before the
    window run only when the pool is drawn.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        settings: Settings,
        workers: Workers = Workers(),
        draw_batch: int = 64,
        cache: SampleCache | None = None,
    ) -> None:
        self.denoiser, self.schedule, self.settings = denoiser, schedule, settings
        world, lead, make_optimiser = workers.world, workers.lead, workers.make_optimiser
        self.micro_batch = settings.micro_batch or settings.batch // world
        if settings.batch % (self.micro_batch * world):
            raise UserError(
                f"batch: got {settings.batch}; {world} workers with micro-batches of {self.micro_batch} must share it"
            )
        self.rank, self.world = workers.rank, world
        pool, spread, start = lead(partial(self._drawn, draw_batch, cache))
        self.pool = pool.to(denoiser.device)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.explorer = self._make_explorer(spread, start).to(denoiser.device)
            self.discriminator = Discriminator(denoiser.judged_shape).to(denoiser.device)
        self.explorer.reconstructor.load_state_dict(lead(partial(self._calibration, draw_batch)), strict=False)
        count = settings.batch // (self.micro_batch * world)
        shift, reconstructor = self.explorer.shift, self.explorer.reconstructor
        groups = [
            Group(list(shift.parameters()), settings.direction_rate),
            Group(list(reconstructor.parameters()), settings.reconstructor_rate),
        ]
        self.explorer_optimiser = make_optimiser("explorer", self.explorer, groups, count)
        self.discriminator_optimiser: Optimiser | None = None
        if settings.discriminator_weight > 0:
            group = Group(list(self.discriminator.parameters()), settings.discriminator_rate, (0.5, 0.99))
            self.discriminator_optimiser = make_optimiser("discriminator", self.discriminator, [group], count)

    def _drawn(self, batch: int, cache: SampleCache | None) -> tuple[Pool, Tensor, Tensor | None]:
        """Return the pool, the spread of h [T], and the start of the directions or None; on the CPU."""
        settings = self.settings
        first = self.schedule.steps_in_window(settings.window).index(True)
        seeds = training_seeds(settings.pool, settings.seed)
        pool, h = draw_pool(self.denoiser, self.schedule, seeds, batch, first, cache)
        if not torch.isfinite(h).all():
            raise NonFiniteError(f"h of model '{self.denoiser.name}' became NaN or infinite in its training samples")
        start = None
        if settings.start == "pca":
            start = leading_components(h, settings.directions, settings.parametrisation)
        elif settings.start == "flattest":
            start = flattest_directions(h, settings.directions, settings.parametrisation, settings.seed)
        return pool.to("cpu"), spread_of(h), start

    def _make_explorer(self, spread: Tensor, start: Tensor | None) -> ShiftAndReconstructor:
        settings = self.settings
        shift = ShiftControl(
            settings.directions,
            self.denoiser.h_shape,
            spread,
            self.schedule.timesteps,
            settings.parametrisation,
            settings.orthonormal,
            start,
            settings.seed,
        )
        return ShiftAndReconstructor(shift, Reconstructor(self.denoiser.judged_shape, settings.directions))

    @torch.no_grad()
    def _calibration(self, batch: int) -> dict[str, Tensor]:
        """Return the reconstructor's buffers: the sizes of images and differences.

        They are measured once, on the first 32 samples of the pool and the directions as they start.
        """
        rows = torch.arange(min(32, len(self.pool.x_0)))
        k, magnitude = self._draw(-1, len(rows))
        parts = [slice(start, start + batch) for start in range(0, len(rows), batch)]
        shifted = torch.cat([self._shifted(rows[part], k[part], magnitude[part]) for part in parts])
        reconstructor = self.explorer.reconstructor
        reconstructor.calibrate(torch.cat([self._plain(rows[part]) for part in parts]), shifted)
        return {name: buffer.cpu() for name, buffer in reconstructor.named_buffers()}

    def _draw(self, n: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the directions [count], each for two samples in a row, and signed magnitudes [count] in +-[floor, 1].

        Both depend only on the seed, n and count.
        """
        settings, random = self.settings, generator("shift", self.settings.seed, n)
        k = torch.randint(settings.directions, ((count + 1) // 2,), generator=random).repeat_interleave(2)[:count]
        size = settings.strength_floor + (1 - settings.strength_floor) * torch.rand(count, generator=random)
        sign = torch.randint(2, (count,), generator=random) * 2 - 1
        return k.to(self.denoiser.device), (size * sign).to(self.denoiser.device)

    @torch.no_grad()
    def _plain(self, rows: Tensor) -> Tensor:
        """Return the unshifted samples of these rows of the pool as the networks see them: [n, *judged_shape]."""
        return self.denoiser.for_judges(self.pool.x_0[rows])

    def _shifted(self, rows: Tensor, k: Tensor, magnitude: Tensor) -> Tensor:
        """Return the shifted samples of these rows of the pool as the networks see them: [n, *judged_shape]."""
        settings = self.settings
        shift = self.explorer.shift.at(k, magnitude * settings.shift_scale)
        seeds, z = [self.pool.seeds[row] for row in rows.tolist()], None
        if self.schedule.stochastic:
            z = step_noise(
                seeds, self.denoiser.sample_shape, len(self.schedule), self.pool.x_t.dtype, self.denoiser.device
            )
        x_0 = sample(
            self.denoiser.for_samples(seeds),
            self.schedule,
            self.pool.x_t[rows],
            shift,
            settings.injection,
            settings.gradient,
            settings.window,
            z,
            self.pool.first_step,
        )
        return self.denoiser.for_judges(x_0)

    def iterate(self, n: int) -> dict[str, float]:
        """Run iteration n, one step of both optimisers, and return each loss term and the training accuracy.

        The values are averaged over this worker's share of the batch.
        Raises NonFiniteError, which names the term, before a NaN reaches any weight.
        """
        settings = self.settings
        rows = torch.randint(len(self.pool.x_0), (settings.batch,), generator=generator("rows", settings.seed, n))
        k, magnitude = self._draw(n, settings.batch)
        share = torch.arange(settings.batch).reshape(-1, self.micro_batch)[self.rank :: self.world]
        terms: list[dict[str, float]] = []
        shifted: list[Tensor] = []

        def explorer_losses() -> Iterator[Tensor]:
            for part in share:
                images = self._shifted(rows[part], k[part], magnitude[part])
                shifted.append(images.detach())
                loss, values = self._explorer_loss(self._plain(rows[part]), images, k[part], magnitude[part])
                terms.append(_finite(values, n))
                yield loss

        def discriminator_losses() -> Iterator[Tensor]:
            for part, images in zip(share, shifted, strict=True):
                loss = losses.discriminator_loss(
                    self.discriminator(self._plain(rows[part])), self.discriminator(images)
                )
                terms.append(_finite({"critic_loss": loss.item()}, n))
                yield loss

        self.discriminator.renormalise()
        self.discriminator.requires_grad_(False)
        self.explorer_optimiser.update(explorer_losses())
        if self.discriminator_optimiser is not None:
            self.discriminator.requires_grad_(True)
            self.discriminator_optimiser.update(discriminator_losses())
        return _means(terms)

    def _explorer_loss(
        self, x_0: Tensor, shifted: Tensor, k: Tensor, magnitude: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        logits, strength = self.explorer.reconstructor(x_0, shifted)
        direction = losses.direction_loss(logits, k)
        strong = losses.strength_loss(strength, magnitude)
        loss = direction + losses.STRENGTH_WEIGHT * strong
        values = {"direction_loss": direction.item(), "strength_loss": strong.item()}
        if self.discriminator_optimiser is not None:
            fidelity = losses.fidelity_loss(self.discriminator(shifted))
            loss = loss + self.settings.discriminator_weight * fidelity
            values["fidelity_loss"] = fidelity.item()
        if self.settings.consistency_weight > 0:
            consistency = losses.consistency_loss(x_0, shifted, magnitude)
            loss = loss + self.settings.consistency_weight * consistency
            values["consistency_loss"] = consistency.item()
        values["training_accuracy"] = (logits.argmax(1) == k).float().mean().item()
        return loss, values

    @torch.no_grad()
    def directions(self) -> DirectionSet:
        """Return the current directions as a set; scale 1.0 is the largest magnitude of the training."""
        shift, steps = self.explorer.shift, len(self.schedule)
        table = shift().expand(-1, steps, -1, -1, -1)
        sigma = (self.settings.shift_scale * shift.spread).expand(len(table), steps)
        settings = {**asdict(self.settings), "gradient": type(self.settings.gradient).__name__}
        return DirectionSet(
            table.detach().cpu().float().clone(),
            sigma.detach().cpu().float().clone(),
            self.schedule.timesteps,
            provenance=provenance("learned", self.denoiser, self.schedule, settings),
        )


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Learn a direction set in this process.

    progress: called as progress(n, terms) after every iteration. batch: unshifted samples drawn at a time before the
    first iteration; cache: where they are read and kept.
    """
    learner = Learner(denoiser, schedule, settings, draw_batch=batch, cache=cache)
    for n in range(settings.iterations):
        terms = learner.iterate(n)
        if progress is not None:
            progress(n, terms)
    return learner.directions()


def _finite(values: dict[str, float], n: int) -> dict[str, float]:
    for term, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{term} became {value} at iteration {n}")
    return values


def _means(terms: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for values in terms for name in values)
    return {
        name: sum(values[name] for values in terms if name in values) / sum(name in values for values in terms)
        for name in names
    }
