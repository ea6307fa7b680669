"""Open a direction set with its frozen model and its chain, and draw edited images.

`orchestrate edit` writes these images, `orchestrate explore` shows them.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor

from core.chain.sampling import Shift, invert, sample, start_of
from core.chain.schedule import Schedule
from core.chain.step import INJECTIONS, Injection, one_step
from core.directions.direction_set import DirectionSet
from core.directions.reading import shown
from core.errors import DirectionSetError, ModelError, UserError
from core.execution.lean import lean
from core.model.denoiser import Denoiser
from core.model.use import Use
from core.pictures.images import load_images
from core.pictures.opening import open_picture
from core.precision import PRECISIONS
from orchestrator.edit.request import ModelOptions, Window
from orchestrator.trial.loading import own_device, placed
from orchestrator.trial.outcome import TrialOutcome, classify

REACH = (-2.0, 2.0)  # scales of a direction whose own range was not measured
_INVERSION_PASSES = 60  # about the passes of the network; few steps are far apart, so each needs more
_SHOWN = 12  # hexadecimal digits of a digest in a message


@dataclass(frozen=True)
class Edit:
    """An edit of a sample: the scale of each direction, the injection, and the window of training timesteps."""

    scales: Mapping[str, float]
    injection: Injection = "symmetric"
    window: Window | None = None


@dataclass(frozen=True)
class StartingSamples:
    """Samples at the start of their chains. noise: z [T, N, *sample_shape] of their steps; None where there is none."""

    denoiser: Denoiser
    schedule: Schedule
    x_T: Tensor
    noise: Tensor | None = None

    @cached_property
    def _kept(self) -> dict[int, Tensor]:
        return {0: self.x_T}

    @torch.no_grad()
    def before(self, step: int) -> Tensor:
        """Return the unshifted state before a step, or x_0 after the last one; each is cached."""
        if step not in self._kept:
            start = max(known for known in self._kept if known < step)
            x = self._kept[start]
            for i in range(start, step):
                z = None if self.noise is None else self.noise[i]
                x = one_step(self.denoiser, self.schedule, i, x, None, "symmetric", z)
            self._kept[step] = x
        return self._kept[step]

    @property
    def plain(self) -> Tensor:
        """The images without an edit: [N, *image_shape], on the CPU."""
        return self.denoiser.images(self.before(len(self.schedule))).cpu()


@dataclass(frozen=True)
class EditSession:
    """An opened set with its model.

    injection, window: those that the set was made with; warnings: sentences for the user; precision: of the model.
    """

    directions: DirectionSet
    denoiser: Denoiser
    schedule: Schedule
    injection: Injection = "symmetric"
    window: Window | None = None
    warnings: tuple[str, ...] = ()
    name: str = ""
    precision: str = "fp32"

    @classmethod
    def open(cls, bundle: Path, options: ModelOptions = ModelOptions()) -> "EditSession":
        """Read a bundle and its model. Raises UserError where the two do not belong together."""
        directions = DirectionSet.load(bundle)
        injection, window, eta = _chain_of(directions, bundle)
        precision = options.precision or _precision_of(directions, bundle)
        denoiser = lean(_model(directions, options, precision))
        warnings = [*denoiser.notes, *_agreement(directions, denoiser, options.any_model)]
        steps = len(directions.timesteps) if options.steps is None else options.steps
        schedule = Schedule.ddim(denoiser, steps, eta)
        if len(schedule) != len(directions.timesteps):
            warnings.append(
                f"the set was made with {len(directions.timesteps)} steps: with {len(schedule)} its shifts are scaled "
                "in proportion, and its ranges were not measured"
            )
        name = bundle.resolve().name
        facts = (injection, window, tuple(warnings), name, precision)
        return cls(directions.to(denoiser.device), denoiser, schedule, *facts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers of the set: two sets with the same digest edit alike."""
        parts = (self.directions.table, self.directions.sigma)
        numbers = b"".join(part.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for part in parts)
        return hashlib.sha256(numbers).hexdigest()

    def from_seeds(self, seeds: Sequence[int]) -> StartingSamples:
        """Return samples that depend on their seeds alone."""
        start = start_of(self.denoiser, self.schedule, seeds)
        return StartingSamples(start.denoiser, self.schedule, start.x_T, start.step_noise)

    def from_images(self, images: Tensor) -> StartingSamples:
        """Return the samples that images [N, *image_shape] come from, as nearly as inversion finds them."""
        self.check_invertible()
        refinements = max(3, _INVERSION_PASSES // len(self.schedule))
        x_0 = self.denoiser.x_0(images.to(self.denoiser.device))
        x_T = invert(self.denoiser, self.schedule, x_0, refinements)
        return StartingSamples(self.denoiser, self.schedule, x_T)

    def check_invertible(self) -> None:
        """Raise UserError where images cannot be inverted on this chain, so that it needs seeds."""
        if self.schedule.stochastic or self.schedule.consistency:
            chain = "on a consistency model" if self.schedule.consistency else f"with eta {self.schedule.eta:g}"
            raise UserError(
                f"images need a chain without noise (eta 0) to be inverted; this set was made {chain}: use seeds"
            )

    def load(self, paths: Sequence[Path]) -> tuple[Tensor, list[str]]:
        """Return images as the model draws them [N, *image_shape], and a note on each that had another size."""
        images = load_images(paths, self.denoiser.image_shape)
        return images, [note for path in paths if (note := self._fitted(path))]

    def _fitted(self, path: Path) -> str | None:
        _, height, width = self.denoiser.image_shape
        with open_picture(path.expanduser(), "images") as opened:
            size = ImageOps.exif_transpose(opened).size
        if size == (width, height):
            return None
        cropped = "cropped around its centre and " if size[0] * height != size[1] * width else ""
        resized = "enlarged" if size[0] < width or size[1] < height else "made smaller"
        return f"{path.name} is {size[0]} x {size[1]} pixels; the model draws {width} x {height}: {cropped}{resized}"

    def edit(self, scales: Mapping[str, float]) -> Edit:
        """Return an edit with the injection and the window that the set was made with."""
        return Edit(scales, self.injection, self.window)

    @torch.no_grad()
    def draw(
        self,
        starting: StartingSamples,
        edit: Edit,
        factors: Sequence[float] = (1.0,),
        batch: int = 64,
        drawn: Callable[[int], object] = lambda count: None,
    ) -> Tensor:
        """Return every sample with the edit at every multiple of its scales: images [N, A, *image_shape], on the CPU.

        drawn: called after each batch with its number of images. A sample is the same in every batch, but for rounding.
        """
        self.check(edit)
        inside = self.schedule.steps_in_window(edit.window)
        first = inside.index(True)
        x = starting.before(first)  # no step before it is shifted
        sampled = torch.arange(len(x)).repeat_interleave(len(factors))
        factor = torch.tensor(list(factors)).repeat(len(x))
        parts = []
        for rows in torch.split(torch.arange(len(sampled)), batch):
            which = sampled[rows].to(x.device)
            z = None if starting.noise is None else starting.noise[:, which]
            shift = self._shift(edit.scales, factor[rows].to(x.device))
            arguments = (starting.denoiser.at_rows(which.tolist()), self.schedule, x[which], shift, edit.injection)
            x_0 = sample(*arguments, window=edit.window, step_noise=z, first=first)
            parts.append(self.denoiser.images(x_0).cpu())
            drawn(len(rows))
        return torch.cat(parts).reshape(len(x), len(factors), *self.denoiser.image_shape)

    def check(self, edit: Edit) -> None:
        """Raise UserError for a direction that is not in the set, or a scale that is not a finite number."""
        for name, scale in edit.scales.items():
            self.directions.index(name)
            if not math.isfinite(scale):
                raise UserError(f"the scale of '{name}' is {scale}; allowed: a finite number")

    def _shift(self, scales: Mapping[str, float], factor: Tensor) -> Shift | None:
        """Return the shift on this chain, or None; on a new chain by nearest timesteps, scaled in proportion."""
        if not any(scales.values()):
            return None
        own, made_on = self.directions.timesteps, range(len(self.directions.timesteps))
        nearest = [min(made_on, key=lambda i: abs(own[i] - t)) for t in self.schedule.timesteps]
        edit: dict[int | str, float] = dict(scales.items())
        delta_h = self.directions.shift(edit, factor * (len(own) / len(self.schedule)))
        return lambda i: delta_h(nearest[i])

    def range_of(self, name: str) -> tuple[float, float]:
        """Return the scales between which images of one direction stay faithful; REACH where that was not measured."""
        dials = self.directions.dials
        if not dials:
            return REACH
        return dials[self.directions.index(name)].range

    def common_range(self, scales: Mapping[str, float]) -> tuple[float, float]:
        """Return the range of multiples of an edit in which all its directions stay in their ranges.

        REACH where there is no such range.
        """
        low, high = -math.inf, math.inf
        for name, scale in scales.items():
            if scale:
                ends = sorted(end / scale for end in self.range_of(name))
                low, high = max(low, ends[0]), min(high, ends[1])
        return (low, high) if math.isfinite(low) and low < high else REACH

    def range_warnings(self, scales: Mapping[str, float]) -> list[str]:
        """Return a sentence for each direction whose scale is outside the range that was measured to stay faithful."""
        if not self.directions.dials:
            return []
        ranges = {name: self.range_of(name) for name in scales}
        return [
            f"{name} {scales[name]:+g} is outside {low:+g} to {high:+g}, "
            "where its images were measured to stay faithful"
            for name, (low, high) in ranges.items()
            if not low <= scales[name] <= high
        ]


def recovered(starting: StartingSamples, images: Tensor) -> list[float]:
    """Return how far inverted images are from their redrawn ones: the mean over pixels, in levels of 255."""
    apart = (starting.plain.clamp(-1, 1) - images).abs().mean(dim=(1, 2, 3)) * 127.5
    return [float(each) for each in apart]


def describe_recovery(name: str, levels: float) -> str:
    """Return a sentence on how far an inverted image is from its redrawn one."""
    return f"{name} is redrawn, before any edit, with a mean error of {levels:.1f} of 255 levels"


def _chain_of(directions: DirectionSet, bundle: Path) -> tuple[Injection, Window | None, float]:
    """Return (injection, window, eta) from a set's provenance. Raises DirectionSetError for an invalid one."""
    provenance = directions.provenance
    injection, window, eta = (
        provenance.get("injection", "symmetric"),
        provenance.get("window"),
        provenance.get("eta", 0.0),
    )
    if injection not in INJECTIONS:
        raise DirectionSetError(f"{bundle}: injection is {shown(injection)}; allowed: {', '.join(INJECTIONS)}")
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise DirectionSetError(f"{bundle}: eta is {shown(eta)}; allowed: 0 to 1")
    if window is not None and not (isinstance(window, list | tuple) and [type(end) for end in window] == [int, int]):
        raise DirectionSetError(f"{bundle}: window is {shown(window)}; allowed: two timesteps, or null")
    return injection, None if window is None else (window[0], window[1]), float(eta)


def _precision_of(directions: DirectionSet, bundle: Path) -> str:
    """Return the precision of the model when the set was found; "fp32" for sets that do not record it."""
    precision = directions.provenance.get("precision", "fp32")
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise DirectionSetError(f"{bundle}: precision is {shown(precision)}; allowed: {', '.join(PRECISIONS)}")
    return precision


def _model(directions: DirectionSet, options: ModelOptions, precision: str) -> Denoiser:
    named = directions.provenance.get("model")
    if options.model is None and (not isinstance(named, str) or not named):
        raise ModelError("the set does not say which model it is for; name it with --model")
    try:
        use = Use.of(directions.provenance.get("use", {})).to_json()
        name, device = options.model or str(named), options.device or own_device()
        return placed(name, device, precision, options.weights, use)
    except ModelError as error:
        if options.model or classify(error) is TrialOutcome.OUT_OF_MEMORY:
            raise
        raise ModelError(f"{error}; another place of it can be given with --model") from None


def _agreement(directions: DirectionSet, denoiser: Denoiser, any_model: bool) -> Iterator[str]:
    """Yield a warning for a set that was made for other weights.

    Raises DirectionSetError where its h has another shape, or where other weights are not allowed.
    """
    if directions.h_shape != denoiser.h_shape:
        raise DirectionSetError(
            f"the set is for h of shape {list(directions.h_shape)}; "
            f"model '{denoiser.name}' has {list(denoiser.h_shape)}"
        )
    digest = directions.provenance.get("weight_digest")
    if digest == denoiser.digest:
        return
    made_for = f"weights {shown(digest[:_SHOWN])}" if isinstance(digest, str) else "weights that it does not name"
    differ = f"the set was made for {made_for}, model '{denoiser.name}' has '{denoiser.digest[:_SHOWN]}'"
    if not any_model:
        raise DirectionSetError(f"{differ}: give the right one with --model, or --any-model to use it all the same")
    yield f"{differ}: its directions may do something else here"
