"""Train directions through the whole chain: what all methods that do so share.

A `ChainLearner` holds a pool of unshifted samples, a shift control, a discriminator and their optimisers. One iteration
shifts a batch of the pool and takes one step of both optimisers,

    shift control        descends  the method's own loss + w softplus(-discriminator(x_0'))
    the discriminator    descends  softplus(-discriminator(x_0)) + softplus(discriminator(x_0'))

with x_0' = chain(x_T, delta_h = m * shift_scale * s_t * d_k,t). The denoiser stays frozen. The gradient of x_0' goes
back through every step; core.chain.gradient has its cost. A method is a subclass: it says how many directions there
are, where they start, and what the loss of a shifted batch is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from core.chain.gradient import CheckpointSteps
from core.chain.sample_maps import sample_maps
from core.chain.sampling import Shift, sample
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.directions.provenance import provenance
from core.errors import NonFiniteError, UserError
from core.methods.trained.discriminator import Discriminator, discriminator_loss, fidelity_loss, map_channels
from core.methods.trained.optimiser import Group, MakeOptimiser, Optimiser, TorchOptimiser
from core.methods.trained.shift_control import ShiftControl
from core.methods.trained.starts import spread_of
from core.methods.trained.training_settings import TrainingSettings
from core.model.denoiser import Denoiser
from core.randomness import generator, step_noise
from core.samples.cache import SampleCache
from core.samples.training import Pool, draw_pool, training_seeds

SLOPE_SAMPLES = 32  # on which slopes are measured

Lead = Callable[[Callable[[], Any]], Any]  # runs a function in one worker and returns its result in all of them


SettingsT = TypeVar("SettingsT", bound=TrainingSettings)


class HasShift(nn.Module):
    """What is optimised together: the shift control, and in a subclass what else descends the same loss."""

    def __init__(self, shift: ShiftControl) -> None:
        super().__init__()
        self.shift = shift


ExplorerT = TypeVar("ExplorerT", bound=HasShift)


def _in_this_process(work: Callable[[], Any]) -> Any:
    return work()


@dataclass(frozen=True)
class Workers:
    """The processes that train together, as one of them sees them.

    make_optimiser: makes an optimiser over all of them; rank, world: the number of this one, and of all; lead: runs
    work in one of them and returns its result in all; differentiating: entered around gradients before the first
    iteration, so that an error there is known to be one of a gradient.
    """

    make_optimiser: MakeOptimiser = TorchOptimiser
    rank: int = 0
    world: int = 1
    lead: Lead = _in_this_process
    differentiating: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Seen:
    """Samples as losses and the discriminator see them.

    rows: the numbers of the samples in the pool [N]; x_0: [N, *sample_shape]; images: x_0 as judges get it, [N,
    *judged_shape]; maps: the frozen denoiser's maps of the samples, [N, C, H, W] each (core.chain.sample_maps); none
    where nothing looks at them.
    """

    rows: Tensor
    x_0: Tensor
    images: Tensor
    maps: tuple[Tensor, ...]


class ChainLearner(ABC, Generic[SettingsT, ExplorerT]):
    """A run of a trained method. `iterate(n)` runs iteration n, `directions()` returns the current set.

    Iteration n draws its samples, directions and magnitudes only from (seed, n), so a resumed run continues exactly
    where the interrupted one stopped.
    workers: the processes that train together; each takes its share of every batch, and one draws the pool for all.
    draw_batch: samples of the pool that are drawn at a time; cache: where they are read and kept. The steps before the
    window run only when the pool is drawn.
    """

    method: ClassVar[str]
    names: tuple[str, ...] = ()  # of the directions; empty: numbered

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        settings: SettingsT,
        workers: Workers = Workers(),
        draw_batch: int = 64,
        cache: SampleCache | None = None,
    ) -> None:
        self.denoiser, self.schedule, self.settings = denoiser, schedule, settings
        self.workers, self.draw_batch = workers, draw_batch
        world, make_optimiser = workers.world, workers.make_optimiser
        self.micro_batch = settings.micro_batch or settings.batch // world
        if settings.batch % (self.micro_batch * world):
            raise UserError(
                f"batch: got {settings.batch}; {world} workers with micro-batches of {self.micro_batch} must share it"
            )
        pool, spread, found = workers.lead(partial(self._drawn, cache))
        self.pool = pool.to(denoiser.device)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.explorer = self._make_explorer(spread, found).to(denoiser.device)
            self.discriminator = Discriminator(denoiser.judged_shape, map_channels(denoiser)).to(denoiser.device)
        self._prepare(workers.lead)
        count = settings.batch // (self.micro_batch * world)
        self.explorer_optimiser = make_optimiser("explorer", self.explorer, self._groups(), count)
        self.discriminator_optimiser: Optimiser | None = None
        if settings.discriminator_weight > 0:
            group = Group(list(self.discriminator.parameters()), settings.discriminator_rate, (0.5, 0.99))
            self.discriminator_optimiser = make_optimiser("discriminator", self.discriminator, [group], count)

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of directions."""

    @abstractmethod
    def _found(self, pool: Pool, h: Tensor) -> Any:
        """Return what the explorer is made from: measured on the pool and its h [T, P, *h_shape], once, on the CPU.

        The pool is on the denoiser's device.
        """

    @abstractmethod
    def _make_explorer(self, spread: Tensor, found: Any) -> ExplorerT:
        """Return what is optimised. spread: of h [T]; found: what `_found` returned."""

    @abstractmethod
    def _loss(self, plain: Seen, shifted: Seen, k: Tensor, magnitude: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return (the method's own loss, its terms) of samples shifted along directions k [N] by magnitudes [N]."""

    def _origin(self) -> dict[str, str]:
        """Return what the provenance of a set tells beside the settings."""
        return {}

    def _groups(self) -> list[Group]:
        """Return the explorer's parameters with their learning rates."""
        return [Group(list(self.explorer.shift.parameters()), self.settings.direction_rate)]

    def _prepare(self, lead: Lead) -> None:
        """Measure what training needs, in one worker; the discriminator's units, on the first 256 of the pool."""
        if self.settings.discriminator_weight > 0:
            self.discriminator.load_state_dict(lead(self._units), strict=False)

    @property
    def _looks_at_maps(self) -> bool:
        """Whether anything looks at the denoiser's maps of shifted samples."""
        return self.settings.discriminator_weight > 0

    def _shift_control(self, spread: Tensor, start: Tensor | None) -> ShiftControl:
        """Return the shift control. start: [K, 1 or T, C*H*W], or None for random directions."""
        settings = self.settings
        return ShiftControl(
            self.count,
            self.denoiser.h_shape,
            spread,
            self.schedule.timesteps,
            settings.parametrisation,
            settings.orthonormal,
            start,
            settings.seed,
        )

    def _drawn(self, cache: SampleCache | None) -> tuple[Pool, Tensor, Any]:
        """Return the pool, the spread of h [T], and what `_found` returns; on the CPU."""
        settings = self.settings
        first = self.schedule.steps_in_window(settings.window).index(True)
        seeds = training_seeds(settings.pool, settings.seed)
        pool, h = draw_pool(self.denoiser, self.schedule, seeds, self.draw_batch, first, cache)
        if not torch.isfinite(h).all():
            raise NonFiniteError(f"h of model '{self.denoiser.name}' became NaN or infinite in its training samples")
        return pool.to("cpu"), spread_of(h), self._found(pool, h)

    def _slopes(self, pool: Pool, spread: Tensor, read: Callable[[Seen], Tensor]) -> Tensor:
        """Return the mean slopes of numbers along a shift of all samples, at no shift: [R, 1 or T, C*H*W], on the CPU.

        read: samples -> the numbers [N, R], differentiable. The shift is in spreads of h [T], one for all steps unless
        each has its own. The slopes are means over the first SLOPE_SAMPLES of the pool.
        """
        rows = torch.arange(min(SLOPE_SAMPLES, len(pool.x_0)))
        steps = len(self.schedule) if self.settings.parametrisation == "per_step" else 1
        units = spread.to(pool.x_0)
        delta = torch.zeros(steps, *self.denoiser.h_shape).to(pool.x_0).requires_grad_()

        def shift(i: int) -> Tensor:
            return units[i] * delta[i if steps > 1 else 0][None]

        total: Tensor | None = None
        for part in torch.split(rows, self.micro_batch):
            with torch.enable_grad(), self.workers.differentiating():
                means = read(self._moved(pool, part, shift, several=True)).sum(dim=0) / len(rows)
                each = [torch.autograd.grad(mean, delta, retain_graph=True)[0].float().cpu() for mean in means]
            total = torch.stack(each) + (0 if total is None else total)
        assert total is not None
        return total.flatten(2)

    @torch.no_grad()
    def _units(self) -> dict[str, Tensor]:
        """Return the discriminator's buffers: the mean and the deviation of every channel of the maps."""
        rows = torch.arange(min(256, len(self.pool.x_0)))
        parts = [self._plain(part).maps for part in torch.split(rows, self.draw_batch)]
        self.discriminator.set_units([torch.cat(maps) for maps in zip(*parts, strict=True)])
        return {name: buffer.cpu() for name, buffer in self.discriminator.units().items()}

    def _draw(self, n: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the directions [count], each for two samples in a row, and signed magnitudes [count] in +-[floor, 1].

        Both depend only on the seed, n and count.
        """
        settings, random = self.settings, generator("shift", self.settings.seed, n)
        k = torch.randint(self.count, ((count + 1) // 2,), generator=random).repeat_interleave(2)[:count]
        size = settings.strength_floor + (1 - settings.strength_floor) * torch.rand(count, generator=random)
        sign = torch.randint(2, (count,), generator=random) * 2 - 1
        return k.to(self.denoiser.device), (size * sign).to(self.denoiser.device)

    @torch.no_grad()
    def _plain(self, rows: Tensor) -> Seen:
        """Return the unshifted samples of these rows of the pool."""
        return self._seen(rows, self.pool.x_0[rows])

    def _shifted(self, rows: Tensor, k: Tensor, magnitude: Tensor) -> Seen:
        """Return the samples of these rows of the pool, shifted along directions k [n] by magnitudes [n]."""
        return self._moved(self.pool, rows, self.explorer.shift.at(k, magnitude * self.settings.shift_scale))

    def _moved(self, pool: Pool, rows: Tensor, shift: Shift, several: bool = False) -> Seen:
        """Return the samples of these rows of a pool, shifted. several: to be differentiated several times."""
        settings, gradient = self.settings, self.settings.gradient
        if several and isinstance(gradient, CheckpointSteps):
            gradient = CheckpointSteps()  # DeepSpeed's own checkpoints can be differentiated only once
        seeds, z = [pool.seeds[row] for row in rows.tolist()], None
        if self.schedule.stochastic:
            z = step_noise(seeds, self.denoiser.sample_shape, len(self.schedule), pool.x_t.dtype, self.denoiser.device)
        x_0 = sample(
            self.denoiser.for_samples(seeds),
            self.schedule,
            pool.x_t[rows],
            shift,
            settings.injection,
            gradient,
            settings.window,
            z,
            pool.first_step,
        )
        return self._seen(rows, x_0)

    def _seen(self, rows: Tensor, x_0: Tensor) -> Seen:
        maps: tuple[Tensor, ...] = ()
        if self._looks_at_maps:
            denoiser = self.denoiser.by_blocks() if self.settings.gradient.by_blocks else self.denoiser
            maps = tuple(sample_maps(denoiser, x_0))
        return Seen(rows, x_0, self.denoiser.for_judges(x_0), maps)

    def iterate(self, n: int) -> dict[str, float]:
        """Run iteration n, one step of both optimisers, and return each loss term.

        The values are averaged over this worker's share of the batch.
        Raises NonFiniteError, which names the term, before a NaN reaches any weight.
        """
        settings = self.settings
        rows = torch.randint(len(self.pool.x_0), (settings.batch,), generator=generator("rows", settings.seed, n))
        k, magnitude = self._draw(n, settings.batch)
        share = torch.arange(settings.batch).reshape(-1, self.micro_batch)[self.workers.rank :: self.workers.world]
        terms: list[dict[str, float]] = []
        done: list[tuple[Seen, Seen]] = []

        def explorer_losses() -> Iterator[Tensor]:
            for part in share:
                shifted, plain = self._shifted(rows[part], k[part], magnitude[part]), self._plain(rows[part])
                done.append((plain, _detached(shifted)))
                loss, values = self._loss(plain, shifted, k[part], magnitude[part])
                if self.discriminator_optimiser is not None:
                    fidelity = fidelity_loss(self.discriminator(shifted.images, shifted.maps))
                    loss = loss + settings.discriminator_weight * fidelity
                    values["fidelity_loss"] = fidelity.item()
                terms.append(_finite(values, n))
                yield loss

        def discriminator_losses() -> Iterator[Tensor]:
            for plain, shifted in done:
                loss = discriminator_loss(
                    self.discriminator(plain.images, plain.maps), self.discriminator(shifted.images, shifted.maps)
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

    def _pictures(self, seen: Seen) -> Tensor:
        """Return the samples as images, decoded once where judges get images too."""
        return seen.images if self.denoiser.use.space == "pixels" else self.denoiser.images(seen.x_0)

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
            self.names,
            provenance=provenance(self.method, self.denoiser, self.schedule, settings) | self._origin(),
        )


def trained(
    learner: ChainLearner[Any, Any], progress: Callable[[int, dict[str, float]], None] | None = None
) -> DirectionSet:
    """Run all iterations in this process and return the set. progress: called as progress(n, terms) after each."""
    for n in range(learner.settings.iterations):
        terms = learner.iterate(n)
        if progress is not None:
            progress(n, terms)
    return learner.directions()


def _detached(seen: Seen) -> Seen:
    return Seen(seen.rows, seen.x_0.detach(), seen.images.detach(), tuple(each.detach() for each in seen.maps))


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
