"""DirectionSet: K named directions in h-space with their lengths, their dials and their provenance.

Every method returns a DirectionSet; every metric, picture and export takes one. On disk it is a folder with
`directions.safetensors` (the tensors) and `directions.json` (the rest); nothing is pickled.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.chain.sampling import Shift
from core.directions.apply_directions import index_of, place_of, shifted, steps_watched
from core.directions.dials import Dial
from core.directions.reading import (
    name_problem,
    read_description,
    read_dials,
    read_metrics,
    read_names,
    read_provenance,
    read_tensors,
    read_timesteps,
    shown,
)
from core.errors import DirectionSetError
from core.files import FILE_MODE, atomic_folder, write_json

FORMAT = "h-space directions"
VERSION = 2  # version 1 had no dials; such a file is read as a set without dials
_TENSORS = "directions.safetensors"
_DESCRIPTION = "directions.json"

Edit = int | str | Mapping[int | str, float]  # one direction, or several with a scale each


@dataclass(frozen=True)
class DirectionSet:
    """A set of K directions over S steps; S is T, or 1 where all steps share one direction.

    table: [K, S, C, H, W], each [C, H, W] of unit length; sigma: [K, S], the length of the shift at scale 1.0.
    timesteps: the T training timesteps of the chain on which the set was found.
    dials: one for each direction (core.metrics.calibration), or empty where none was measured.
    Raises DirectionSetError where the parts do not fit each other or hold NaN or infinite numbers.
    """

    table: Tensor
    sigma: Tensor
    timesteps: tuple[float, ...]
    names: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    dials: tuple[Dial, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(f"direction_{k}" for k in range(len(self.table))))
        problem = self._problem()
        if problem:
            raise DirectionSetError(f"not a direction set: {problem}")

    def _problem(self) -> str | None:
        if self.table.ndim != 5 or len(self.table) == 0:
            return f"table has shape {list(self.table.shape)}, expected [K, S, C, H, W]"
        if self.table.shape[1] not in (1, len(self.timesteps)):
            return f"table has {self.table.shape[1]} steps, expected 1 or {len(self.timesteps)} (one for each timestep)"
        if self.sigma.shape != self.table.shape[:2]:
            return f"sigma has shape {list(self.sigma.shape)}, expected {list(self.table.shape[:2])}"
        if len(self.names) != len(self.table) or len(set(self.names)) != len(self.names):
            return f"{len(self.names)} names for {len(self.table)} directions; each needs one of its own"
        if problem := next(filter(None, map(name_problem, self.names)), None):
            return problem
        if not (torch.isfinite(self.table).all() and torch.isfinite(self.sigma).all()):
            return "table or sigma holds NaN or infinite numbers"
        if len(self.dials) not in (0, len(self.table)):
            return (
                f"{len(self.dials)} dials for {len(self.table)} directions; each needs one of its own, or none has one"
            )
        return None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def h_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the h that the directions shift."""
        _, _, channels, height, width = self.table.shape
        return channels, height, width

    def index(self, direction: int | str) -> int:
        """Return the number of a direction that is given by number or name.

        Raises DirectionSetError where the set has no such direction.
        """
        return index_of(direction, self.names, DirectionSetError)

    def shift(self, direction: Edit | Tensor, scale: float | Tensor = 1.0) -> Shift:
        """Return the shift of one direction, several at once, or one per sample: step -> delta_h [N or 1, C, H, W].

        direction: a number, a name, a tensor of numbers [N] with one for each sample, or several with a scale each, as
        in {"smile": 1.0, "yaw": -0.5}, whose shifts are added.
        scale: in units of sigma, signed; one number or [N].
        """
        if isinstance(direction, Mapping):
            return self._combined(direction, scale)
        if not isinstance(direction, Tensor):
            direction = torch.tensor([self.index(direction)])
        direction = direction.to(self.table.device)
        factor = torch.as_tensor(scale, device=self.table.device, dtype=self.table.dtype).reshape(-1)

        def delta_h(i: int) -> Tensor:
            s = i if self.table.shape[1] > 1 else 0
            length = factor * self.sigma[direction, s]  # [N]
            return length[:, None, None, None] * self.table[direction, s]

        return delta_h

    def _combined(self, scales: Mapping[int | str, float], scale: float | Tensor) -> Shift:
        if not scales:
            raise DirectionSetError("an edit of several directions needs at least one, as in {'smile': 1.0}")
        parts = [self.shift(direction, torch.as_tensor(scale) * own) for direction, own in scales.items()]

        def delta_h(i: int) -> Tensor:
            return torch.stack([shift for part in parts if (shift := part(i)) is not None]).sum(dim=0)

        return delta_h

    @contextmanager
    def applied(
        self,
        network: nn.Module,
        direction: Edit,
        scale: float = 1.0,
        steps: int | None = None,
        asymmetric: Any = None,
    ) -> Iterator[None]:
        """Edit everything that `network`, the UNet or transformer of any diffusers pipeline, draws in the `with` block.

        direction: a number, a name, or several with a scale each, as in `shift`.
        steps: the pipeline's number of inference steps where it differs from the set's T; each shift is then scaled by
        T / steps (as Kwon et al. do). A warning after the block says where the pipeline took another number. The shift
        of a step is that of the nearest timestep of the set.
        asymmetric: the pipeline's scheduler, DDIM's or a flow's, without clipping, to shift only the predicted image;
        None: symmetric injection, with any sampler.
        The hooks are removed when the block ends, also by an exception.
        """
        shift = self.shift(direction, scale * (len(self.timesteps) / steps if steps else 1.0))
        place = place_of(self.provenance, DirectionSetError)
        with (
            shifted(network, shift, self.timesteps, asymmetric, DirectionSetError, place),
            steps_watched(network, self.timesteps, steps, place),
        ):
            yield

    def within(self, window: tuple[int, int] | None) -> "DirectionSet":
        """Return the set with zero shift outside a window [high, low] of training timesteps; this set where None."""
        if window is None:
            return self
        high, low = window
        inside = torch.tensor([low <= t <= high for t in self.timesteps], device=self.sigma.device)
        steps = len(self.timesteps)
        sigma = self.sigma.expand(-1, steps) * inside
        return replace(self, table=self.table.expand(-1, steps, -1, -1, -1).clone(), sigma=sigma)

    def without(self, direction: int | str, others: Sequence[int | str]) -> "DirectionSet":
        """Return the set with `others` projected out of `direction`: n - C^T (C C^T)^-1 C n (Haas et al., section 3.3).

        n is `direction` over all steps, and the rows of C are `others` over all steps. The metrics are dropped.
        Raises DirectionSetError where `others` is empty, contains `direction`, or spans it.
        """
        k = self.index(direction)
        rows = [self.index(other) for other in others]
        if not rows or k in rows:
            raise DirectionSetError(f"to disentangle '{self.names[k]}' give one or more other directions, not itself")
        full = (self.table * self.sigma[:, :, None, None, None]).double().flatten(1)  # [K, S*C*H*W]
        c, n = full[rows], full[k]
        projected = n - c.T @ torch.linalg.lstsq(c @ c.T, c @ n).solution
        if projected.norm() < 1e-6 * n.norm():
            raise DirectionSetError(f"nothing is left of '{self.names[k]}': the other directions span it")
        left = projected.reshape(self.table.shape[1:])
        length = left.flatten(1).norm(dim=1)  # [S]
        table, sigma = self.table.clone(), self.sigma.clone()
        table[k] = (left / length.clamp(min=1e-30)[:, None, None, None]).to(table)
        sigma[k] = length.to(sigma)
        return replace(self, table=table, sigma=sigma, metrics={})

    def renamed(self, names: Mapping[int | str, str]) -> "DirectionSet":
        """Return the set with names given by hand: number or old name -> new name."""
        new_names = {self.index(direction): name for direction, name in names.items()}
        every = tuple(new_names.get(k, name) for k, name in enumerate(self.names))
        dials = tuple(replace(dial, named_by="hand") if k in new_names else dial for k, dial in enumerate(self.dials))
        return replace(self, names=every, dials=dials)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "DirectionSet":
        """Return the set with its tensors on `device`, in `dtype` where given."""
        return replace(self, table=self.table.to(device, dtype), sigma=self.sigma.to(device, dtype))

    def save(self, folder: str | Path) -> None:
        """Write the set into a new folder, whole or not at all. Raises DirectionSetError if the folder exists."""
        folder = Path(folder)
        try:
            with atomic_folder(folder) as temporary:
                self.write(temporary)
        except FileExistsError:
            raise DirectionSetError(f"{folder} exists; a direction set is written into a new folder") from None

    def write(self, folder: Path) -> None:
        """Write the set's two files into an existing folder."""
        tensors = {"table": self.table, "sigma": self.sigma}
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / _TENSORS)
        (folder / _TENSORS).chmod(FILE_MODE)  # safetensors makes it readable by its owner only
        description = {
            "format": FORMAT,
            "version": VERSION,
            "names": list(self.names),
            "timesteps": list(self.timesteps),
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "dials": [dial.to_json() for dial in self.dials],
        }
        write_json(folder / _DESCRIPTION, description)

    @classmethod
    def load(cls, folder: str | Path) -> "DirectionSet":
        """Read a set that `save` or an export wrote. Raises DirectionSetError, in one sentence, for any other folder.

        The folder may come from anyone: the sizes that are read are bounded (core.directions.reading), no code of the
        set runs, and no file outside the folder is read.
        """
        folder = Path(folder)
        description = read_description(folder / _DESCRIPTION)
        if (file_format := description.get("format")) != FORMAT:
            raise DirectionSetError(f"{folder / _DESCRIPTION} has format {shown(file_format)}, not '{FORMAT}'")
        version = description.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise DirectionSetError(f"{folder} has format version {shown(version)}; this one reads up to {VERSION}")
        try:
            names, timesteps = read_names(description), read_timesteps(description)
            metrics, provenance = read_metrics(description), read_provenance(description)
            dials = read_dials(description) if version > 1 else ()
        except DirectionSetError as error:
            raise DirectionSetError(f"{folder / _DESCRIPTION} is not of a direction set: {error}") from None
        tensors = read_tensors(folder / _TENSORS, len(names), len(timesteps))
        return cls(tensors["table"], tensors["sigma"], timesteps, names, metrics, provenance, dials)


def units(shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Return shifts of h [K, S, C, H, W] as unit directions of that shape, and their lengths [K, S].

    Where a shift is 0, the direction is arbitrary.
    """
    length = shifts.flatten(2).norm(dim=2)
    anywhere = torch.eye(1, shifts[0, 0].numel()).reshape(shifts.shape[2:]).to(shifts)
    each = length[:, :, None, None, None]
    return torch.where(each == 0, anywhere, shifts / each.clamp(min=1e-30)), length
