"""List what a sweep reads beside its own file: its model, networks, masks and images, on disk or from the hub.

Whatever copies, checks or downloads these things before trials run goes by this list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.files import PICKLES
from core.model.catalogue import at_path, missing_model, origin_of
from orchestrator.spec.distributions import countable
from orchestrator.spec.problems import SpecError
from orchestrator.spec.sweep import Sweep

# What may stand at each key. A key of this second table is never the name of something on the hub.
_NETWORKS = {
    "predictor": "a folder here, or a hub id, of an image classifier or a CLIP model",
    "evaluate.second_predictor": "a folder here, or a hub id, of an image classifier or a CLIP model",
    "evaluate.features": "a folder here, or a hub id, of an image model",
    "evaluate.identity": "a safetensors file, or a folder here or a hub id of an image model",
    "search.semantic.look": "denoiser, or a folder here, or a hub id, of an image model",
    "search.learned.look": "pixels, denoiser, or a folder here, or a hub id, of an image model",
}
_FILES = {
    "evaluate.inception": "a safetensors file",
    "evaluate.lpips": "a safetensors file",
    "search.jacobian.mask": "an image",
    "search.supervised.pairs": "a folder of images",
}

# The words for no file, where that is not "none".
_NO_FILE = {"search.semantic.look": ("denoiser",), "search.learned.look": ("pixels", "denoiser")}


@dataclass(frozen=True)
class Source:
    """One thing that a sweep reads: the key that names it, and its name there."""

    key: str
    name: str

    @property
    def on_disk(self) -> bool:
        """Whether the name stands for a file or a folder, whether that exists or not."""
        weights = Path(self.name).suffix.lower() in (".safetensors", *PICKLES)
        return self.key in _FILES or weights or origin_of(self.name) in ("folder", "file")

    @property
    def absent(self) -> str | None:
        """A sentence where it should be on the disk of this machine and is not; None otherwise."""
        if not self.on_disk or at_path(self.name) is not None:
            return None
        if self.key == "model":
            return missing_model(self.name)
        return f"{self.key}: '{self.name}' is not there; allowed: {(_NETWORKS | _FILES)[self.key]}"


def sources(sweep: Sweep) -> Iterator[Source]:
    """Yield everything that the sweep reads: each value of a parameter that names files."""
    yield Source("model", sweep.model)
    for key in (*_NETWORKS, *_FILES):
        section, _, name = key.partition(".")
        values: Sequence[object] = [sweep.predictor if section == "predictor" else getattr(sweep.evaluate, name, None)]
        if section == "search":
            values = countable(sweep.distribution_of(name)) or ()
        yield from (Source(key, str(value)) for value in values if value not in (None, *_NO_FILE.get(key, ("none",))))


def absent(sweep: Sweep) -> list[Source]:
    """Return everything that should be on the disk of this machine and is not."""
    return [source for source in sources(sweep) if source.absent is not None]


def refuse_absent(sweep: Sweep) -> None:
    """Raise SpecError, a line for each, where something should be on the disk of this machine and is not."""
    if missing := absent(sweep):
        raise SpecError(str(source.absent) for source in missing)
