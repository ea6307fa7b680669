"""Read the weights of published networks from safetensors files, and refuse files that do not fit in one sentence."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import ModelError
from core.files import PICKLES, ZIP, conversion, digest_of_files, why_unreadable

_COUNTER = "num_batches_tracked"  # of a batch normalisation; nothing depends on it once it is frozen

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class StateDict:
    """The tensors of one file, and how messages call it."""

    label: str  # the role of the network, and where it was read from
    digest: str
    tensors: dict[str, Tensor]

    def fill(self, net: Net, content: str, cure: str = "") -> Net:
        """Return `net`, made on the meta device, with these weights in float32, frozen. Further tensors are ignored.

        content: how messages call what the file should hold; cure: ends their sentence. Raises ModelError with the
        first name of `net` that is missing or has another shape.
        """
        wanted = net.state_dict()
        for name, tensor in wanted.items():
            stored = self.tensors.get(name)
            if name.endswith(_COUNTER):
                continue
            if stored is None:
                raise ModelError(f"{self.label} is not {content}: it lacks {name}{cure}")
            if stored.shape != tensor.shape:
                shapes = f"{list(stored.shape)}, not {list(tensor.shape)}"
                raise ModelError(f"{self.label} is not {content}: {name} has shape {shapes}{cure}")
        counter = torch.zeros((), dtype=torch.int64)
        net.load_state_dict(
            {n: counter if n.endswith(_COUNTER) else self.tensors[n].float() for n in wanted}, assign=True
        )
        return net.eval().requires_grad_(False)


def read_weights(where: str, role: str) -> StateDict:
    """Read all tensors of a safetensors file.

    role: such as 'LPIPS network'. Raises ModelError for a file that is missing, a folder, a pickle, or damaged.
    """
    path, label = Path(where).expanduser(), f"{role} '{where}'"
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not there"
        raise ModelError(f"{label} {problem}: give a safetensors file of its weights")
    if _is_pickle(path):
        raise ModelError(f"{label} is a pickle, and pickles are not read: they can run code; {conversion(path)}")
    try:
        return StateDict(label, digest_of_files([path]), load_file(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{label} cannot be read as safetensors: {why_unreadable(path, error)}") from error


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP
