"""How a model is used: where it is shifted, what it is told to draw, and how large. A value that a set carries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from core.errors import UserError

Half = Literal["both", "conditional"]
HALVES = ("both", "conditional")
Space = Literal["latents", "pixels"]
SPACES = ("latents", "pixels")


@dataclass(frozen=True)
class Use:
    """What `Denoiser.from_pretrained` may be told beside the model's name.

    tap: where h is ("mid_block" of a UNet, "blocks.N" of a transformer; None: the middle); form: what of it has a shift
    of its own (core.cuts.tap; None: every place); prompts: of a text model, or classes: of a class-conditional one,
    which samples take in turn; negative_prompt: what guidance leads away from; guidance: its weight, 1 is none (None:
    the model's own for networks that are told it, else 1); shifted: which half of a guided batch a shift is added to;
    size: the side of the images in pixels (None: the model's own); space: whether what is trained on samples and what
    judges them looks at latents, or at the images that are decoded from them.
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
        for name in ("prompts", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in (("shifted", HALVES), ("space", SPACES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}: got '{getattr(self, name)}'; allowed: {', '.join(allowed)}")
        if self.guidance is not None and not 1 <= self.guidance < 100:
            raise UserError(f"guidance: got {self.guidance}; allowed: 1, which is none, to 100")
        if self.prompts and self.classes:
            raise UserError("prompts and classes are both given; a model has one or the other")

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON."""
        told = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, (v, default) in told.items() if v != default}

    @classmethod
    def from_json(cls, told: object) -> "Use":
        """What `to_json` wrote, which may come from a stranger. Raises UserError."""
        if not isinstance(told, Mapping) or told.keys() - asdict(cls()).keys():
            raise UserError("use: not what a model can be told")
        kinds: dict[str, tuple[type, ...]] = {"guidance": (int, float), "size": (int,)}
        for name, value in told.items():
            if name in ("prompts", "classes"):
                item = str if name == "prompts" else int
                good = isinstance(value, list | tuple) and all(type(each) is item for each in value)
            else:
                good = isinstance(value, kinds.get(name, (str,))) and not isinstance(value, bool)
            if not good:
                raise UserError(f"use: {name} is not what a model can be told")
        return cls(**told)
