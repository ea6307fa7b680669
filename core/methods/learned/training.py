"""Learn directions: train shift control, reconstructor and discriminator together through the whole chain.

A reconstruction of Zhang et al. (arXiv 2310.09912) from its abstract and its ancestor for GANs (Voynov & Babenko,
arXiv 2002.03754). One iteration, on a batch of samples x_0 with known noise x_T:

    k ~ uniform, m ~ uniform in +-[floor, 1]                         a direction and a magnitude for each sample
    x_0' = chain(x_T, delta_h = m * shift_scale * s_t * d_k,t)       the shifted sample
    (k^, m^) = reconstructor(x_0, x_0')
    shift control and reconstructor descend  CE(k^, k) + 0.25 * 6 |m^ - m| + w softplus(-discriminator(x_0'))
                                             + c (1 - cos of what the shift does to two samples)
                                             + p (1 - cos of what the shift changes of all sources and its own one)
                                             + l (how evenly what it changes is spread over the image)
    the discriminator descends               softplus(-discriminator(x_0)) + softplus(discriminator(x_0'))

The terms with c, p and l, and the sources, found without labels (core.methods.sources), are ours. Reconstructor and
the term with c see pixels or features of them (core.methods.learned.looks). What all trained methods share is in
core.methods.trained.chain_learner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.methods.learned import losses
from core.methods.learned.looks import PIXELS, UNIT_SAMPLES, Units, open_look, seen_in, shape_seen
from core.methods.learned.reconstructor import Reconstructor
from core.methods.sources import DENOISER, READ, Sources, find_sources
from core.methods.trained.chain_learner import ChainLearner, HasShift, Lead, Seen, Workers, trained
from core.methods.trained.optimiser import Group
from core.methods.trained.shift_control import ShiftControl
from core.methods.trained.starts import leading_components, pure_directions, spread_of
from core.methods.trained.training_settings import TrainingSettings
from core.model.denoiser import Denoiser
from core.predictors.vision import Extractor
from core.samples.cache import SampleCache
from core.samples.training import Pool

Start = Literal["slopes", "pca", "random"]
STARTS = ("slopes", "pca", "random")
PAIRED = ("consistency_weight", "purity_weight", "locality_weight")  # of terms on two samples of the same direction


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """The settings of the method, beside those of every trained method."""

    directions: int = 16
    consistency_weight: float = 1.0  # 0: samples are not compared
    purity_weight: float = 30.0  # 0: nothing holds directions to sources
    locality_weight: float = 100.0  # 0: shifts may change the whole image
    look: str = PIXELS  # what reconstructor and consistency see: pixels, denoiser, or a vision model's folder or hub id
    start: Start = "slopes"  # of the sources; "pca": principal components of h; or "random"
    reconstructor_rate: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise UserError(f"start: got '{self.start}'; allowed: {', '.join(STARTS)}")
        for name in PAIRED:
            if getattr(self, name) > 0 and (self.micro_batch or self.batch) % 2:
                raise UserError(
                    f"micro_batch: got {self.micro_batch or self.batch}; samples are compared in pairs: give an even "
                    f"number, or {name} 0"
                )
        if self.directions < 2:
            raise UserError(f"directions: got {self.directions}; the reconstructor needs at least 2 to tell apart")

    @property
    def finds_sources(self) -> bool:
        """Whether sources are looked for in the pool."""
        return self.purity_weight > 0 or self.start == "slopes"


class ShiftAndReconstructor(HasShift):
    """The two modules that are optimised together: shift control and reconstructor."""

    def __init__(self, shift: ShiftControl, reconstructor: Reconstructor) -> None:
        super().__init__(shift)
        self.reconstructor = reconstructor


class Found(NamedTuple):
    """What is found on the pool before training: the start of the directions, and the sources with their values."""

    start: Tensor | None
    sources: Sources | None
    unshifted: Tensor | None  # [P, R], what is read in the unshifted samples
    units: Units | None  # of what is seen, where that is not pixels


class Learner(ChainLearner[Settings, ShiftAndReconstructor]):
    """A run of the learned method; see `ChainLearner`.

    vision: the vision model that settings.look names, opened. Without it, it is opened here; raises what `open_look`
    raises.
    """

    method = "learned"

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        settings: Settings,
        workers: Workers = Workers(),  # noqa: B008  # frozen
        draw_batch: int = 64,
        cache: SampleCache | None = None,
        vision: Extractor | None = None,
    ) -> None:
        self.vision = vision or open_look(settings.look, denoiser.device)
        super().__init__(denoiser, schedule, settings, workers, draw_batch, cache)

    @property
    def count(self) -> int:
        """The number of directions."""
        return self.settings.directions

    @property
    def _looks_at_maps(self) -> bool:
        return super()._looks_at_maps or self.settings.finds_sources or self.settings.look == DENOISER

    def _found(self, pool: Pool, h: Tensor) -> Found:
        settings, units = self.settings, self._units_of_look(pool)
        start = leading_components(h, self.count, settings.parametrisation) if settings.start == "pca" else None
        if not settings.finds_sources:
            return Found(start, None, None, units)
        count = min(self.count, READ)  # further directions start at random
        sources, unshifted = find_sources(self.denoiser, pool.x_0, count, self.draw_batch, settings.seed)
        if settings.start == "slopes":
            on_device = sources.to(self.denoiser.device)
            slopes = self._slopes(pool, spread_of(h), lambda seen: on_device.read(seen.maps))
            start = pure_directions(slopes, sources.count, self.count)
        return Found(start, sources, unshifted, units)

    @torch.no_grad()
    def _units_of_look(self, pool: Pool) -> Units | None:
        """Return the units of what is seen, measured on the first UNIT_SAMPLES of a pool; None for pixels."""
        if self.settings.look == PIXELS:
            return None
        rows = torch.arange(min(UNIT_SAMPLES, len(pool.x_0)))
        parts = torch.split(rows, self.draw_batch)
        return Units.of(torch.cat([self._looked(self._seen(part, pool.x_0[part])).cpu() for part in parts]))

    def _looked(self, seen: Seen) -> Tensor:
        """Return what is seen of samples [N, C, H, W], before units; differentiable."""
        if self.settings.look == PIXELS:
            return seen.images
        if self.vision is None:
            return seen_in(seen.maps)
        assert self.vision.embed_through is not None  # refused by open_look
        return self.vision.embed_through(self._pictures(seen))[:, :, None, None].to(self.denoiser.device)

    def _look(self, seen: Seen) -> Tensor:
        """Return what reconstructor and consistency see of samples: [N, C, H, W], differentiable."""
        looked = self._looked(seen)
        return looked if self.units is None else self.units(looked)

    def _origin(self) -> dict[str, str]:
        return {"seen_by": self.vision.name} if self.vision else {}

    def _make_explorer(self, spread: Tensor, found: Found) -> ShiftAndReconstructor:
        if found.sources is not None and found.unshifted is not None:
            self.sources = found.sources.to(self.denoiser.device)
            self.unshifted = found.unshifted.to(self.denoiser.device)
        self.units = found.units and found.units.to(self.denoiser.device)
        features = 0 if found.units is None else len(found.units.mean)
        shape = shape_seen(self.denoiser, self.settings.look, features)
        return ShiftAndReconstructor(self._shift_control(spread, found.start), Reconstructor(shape, self.count))

    def _prepare(self, lead: Lead) -> None:
        super()._prepare(lead)
        self.explorer.reconstructor.load_state_dict(lead(self._calibration), strict=False)

    @torch.no_grad()
    def _calibration(self) -> dict[str, Tensor]:
        """Return the reconstructor's buffers: the sizes of what it sees and of differences.

        They are measured once, on the first 32 samples of the pool and the directions as they start.
        """
        rows = torch.arange(min(32, len(self.pool.x_0)))
        k, magnitude = self._draw(-1, len(rows))
        parts = [slice(start, start + self.draw_batch) for start in range(0, len(rows), self.draw_batch)]
        shifted = torch.cat([self._look(self._shifted(rows[part], k[part], magnitude[part])) for part in parts])
        reconstructor = self.explorer.reconstructor
        reconstructor.calibrate(torch.cat([self._look(self._plain(rows[part])) for part in parts]), shifted)
        return {name: buffer.cpu() for name, buffer in reconstructor.named_buffers()}

    def _groups(self) -> list[Group]:
        reconstructor = list(self.explorer.reconstructor.parameters())
        return [*super()._groups(), Group(reconstructor, self.settings.reconstructor_rate)]

    def _loss(self, plain: Seen, shifted: Seen, k: Tensor, magnitude: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        with torch.no_grad():
            unshifted = self._look(plain)
        seen = self._look(shifted)
        logits, strength = self.explorer.reconstructor(unshifted, seen)
        direction = losses.direction_loss(logits, k)
        strong = losses.strength_loss(strength, magnitude)
        loss = direction + losses.STRENGTH_WEIGHT * strong
        values = {"direction_loss": direction.item(), "strength_loss": strong.item()}
        if settings.consistency_weight > 0:
            consistency = losses.consistency_loss(unshifted, seen, magnitude)
            loss = loss + settings.consistency_weight * consistency
            values["consistency_loss"] = consistency.item()
        if settings.purity_weight > 0:
            change = self.sources.read(shifted.maps) - self.unshifted[plain.rows.to(self.unshifted.device)]
            own = torch.where(k < self.sources.count, k, -1)  # directions are in the order of their sources
            purity = losses.purity_loss(change, own, magnitude)
            loss = loss + settings.purity_weight * purity
            values["purity_loss"] = purity.item()
        if settings.locality_weight > 0:
            locality = losses.locality_loss(plain.images, shifted.images, magnitude)
            loss = loss + settings.locality_weight * locality
            values["locality_loss"] = locality.item()
        values["training_accuracy"] = (logits.argmax(1) == k).float().mean().item()
        return loss, values


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
    cache: SampleCache | None = None,
    vision: Extractor | None = None,
) -> DirectionSet:
    """Learn a direction set in this process.

    progress: called as progress(n, terms) after every iteration. batch: unshifted samples drawn at a time before the
    first iteration; cache: where they are read and kept. vision: as of `Learner`, which says what is raised.
    """
    return trained(Learner(denoiser, schedule, settings, draw_batch=batch, cache=cache, vision=vision), progress)
