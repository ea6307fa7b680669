"""How a model is used: where it is shifted, what it is asked to draw, how large. A direction set stores this value."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal

from core.errors import UserError

Half = Literal["both", "conditional"]
HALVES = ("both", "conditional")
Space = Literal["latents", "pixels"]
SPACES = ("latents", "pixels")
_SINGLE: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("tap", (str, NoneType), "the name of a block"),
    ("form", (str, NoneType), "spatial, tokens or pooled"),
    ("negative_prompt", (str,), "a text"),
    ("guidance", (int, float, NoneType), "a number from 1, which is none, to 100"),
    ("size", (int, NoneType), "a whole number of pixels"),
)


@dataclass(frozen=True)
class Use:
    """The options of `Denoiser.from_pretrained` beside the model's name.

    tap: where h is ("mid_block" of a UNet, "blocks.N" of a transformer; None: the middle). form: the parts of h that
    have a shift of their own (core.model.cuts.tap; None: every place). prompts: for a text model; classes: for a
    class-conditional one; samples take them in turn. negative_prompt: the text that guidance leads away from. guidance:
    its weight, 1 is none (None: the model's own where the network takes it as an input, else 1). shifted: the half of a
    guided batch to which a shift is added. size: the side of the images in pixels (None: the model's own). space:
    whether trained parts and judges get latents, or the images decoded from them.
    """

    tap: str | None = None
    form: str | None = None
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    classes: tuple[int, ...] = ()
    guidance: float | None = None
    shifted: Half = "both"
    size: int | None = None
    space: Space = "latents"

    def __post_init__(self) -> None:
        for name, kind, allowed in (("prompts", str, "a text"), ("classes", int, "the number of a class")):
            object.__setattr__(self, name, _several(name, getattr(self, name), kind, allowed))
        for name, kinds, allowed in _SINGLE:
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise UserError(f"{name}: got {value!r}; allowed: {allowed}")
        for name, words in (("shifted", HALVES), ("space", SPACES)):
            if getattr(self, name) not in words:
                raise UserError(f"{name}: got '{getattr(self, name)}'; allowed: {', '.join(words)}")
        if self.guidance is not None and not 1 <= self.guidance < 100:
            raise UserError(f"guidance: got {self.guidance}; allowed: 1, which is none, to 100")
        if self.prompts and self.classes:
            raise UserError("prompts and classes are both given; a model has one or the other")

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults, as plain JSON."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, (v, default) in values.items() if v != default}

    @classmethod
    def of(cls, values: object) -> "Use":
        """Return a Use from names and values, such as `to_json` wrote.

        Raises UserError for an unknown name or a wrong value: the file with them may come from a stranger.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"a model's use: got {values!r}; allowed: names and values")
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                meant = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"{name}: not what a model can be told; allowed: {', '.join(names)}{meant}")
        return cls(**values)


def _several(name: str, value: object, kind: type, allowed: str) -> tuple[Any, ...]:
    """Return one or several values of a kind as a tuple; None gives an empty one."""
    items = () if value is None else (value,) if isinstance(value, str | int) else value
    if isinstance(items, list | tuple) and all(type(item) is kind for item in items):
        return tuple(items)
    raise UserError(f"{name}: got {value!r}; allowed: {allowed}, or a list of them")
