"""The section `denoiser` of a sweep file: how the model is used."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from orchestrator.spec.domains import Domain, OneOf, OrNull, Real, Text, Whole
from orchestrator.spec.sections import Section


@dataclass(frozen=True)
class ListOf(Domain):
    """A list of different values of `domain`, or one such value alone."""

    domain: Domain
    most: int = 1000

    def __str__(self) -> str:
        return f"a list of different values, each {self.domain}"

    def check(self, value: object) -> tuple[Any, ...]:
        """Return the values as a tuple. Raises Refused for equal values, too many, or one outside `domain`."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        if len(values) > self.most:
            self.refuse(f"has more than {self.most} values", len(values))
        checked = tuple(self.domain.check(each) for each in values)
        if len(set(checked)) < len(checked):
            self.refuse("names something twice", value)
        return checked


@dataclass(frozen=True)
class Prompt(Domain):
    """A prompt of a text model; it may be empty."""

    def __str__(self) -> str:
        return "text (quote what YAML reads as a number or a truth value)"

    def check(self, value: object) -> str:
        """Return the text, which may be empty. Raises Refused as `Text` does."""
        return "" if value == "" else Text().check(value)


@dataclass(frozen=True)
class TapName(Domain):
    """The name of a tap, a place in a network."""

    def __str__(self) -> str:
        return "mid_block of a UNet, or blocks.N of a transformer"

    def check(self, value: object) -> str:
        """Return `value` if it can be the name of a submodule, else raise Refused."""
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,199}", value):
            self.refuse("is not the name of a tap", value)
        return value


class ModelUse(Section):
    """How the model is used (core.model.use): where it is shifted, what it is asked to draw, and how large.

    `tap` is where h is, `form` the parts of h that have a shift of their own: every place ("spatial"), every token
    ("tokens"), or every channel ("pooled"). Samples take `prompts`, or `classes`, in turn, by their seed. `guidance`
    leads away from `negative_prompt`; `shifted` is the half of a guided batch that is shifted. `size` is the side of
    the images in pixels. `space` is what the trained parts and the judges get: latents, or the images decoded from
    them. null stands for the model's own value.
    """

    tap: Annotated[str | None, OrNull(TapName())] = None
    form: Annotated[str | None, OrNull(OneOf(("spatial", "tokens", "pooled")))] = None
    prompts: Annotated[tuple[str, ...], ListOf(Prompt())] = ()
    negative_prompt: Annotated[str, Prompt()] = ""
    classes: Annotated[tuple[int, ...], ListOf(Whole(0))] = ()
    guidance: Annotated[float | None, OrNull(Real(low=1, below=100))] = None
    shifted: Annotated[str, OneOf(("both", "conditional"))] = "both"
    size: Annotated[int | None, OrNull(Whole(8, 65_536))] = None
    space: Annotated[str, OneOf(("latents", "pixels"))] = "latents"

    @property
    def use(self) -> dict[str, Any]:
        """The keyword arguments of `core.model.denoiser.Denoiser.from_pretrained`."""
        return self.model_dump()
