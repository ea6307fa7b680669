"""What the name of a model stands for, told without torch: whoever plans, launches or records asks here.

The order is that in which core.model.denoiser and core.model.pretrained look: what a package registers goes before what
is shipped, and what is here before the hub.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from core.zoo import MODELS

Origin = Literal["built-in", "registered", "folder", "file", "hub"]

GROUP = "h_space.models"  # of entry points: a model's name -> load(dtype, device, use) -> Denoiser
_LONGEST = 96  # letters of a hub id
SINGLE_FILES = (".safetensors", ".ckpt")  # what no hub id ends with


def origin_of(name: str) -> Origin:
    """Where a model of this name comes from, whether it is there or not.

    What can be nothing else is a folder, which is then missing.
    """
    if entry_points(group=GROUP, name=name):
        return "registered"
    if name in MODELS:
        return "built-in"
    if (there := at_path(name)) is not None:
        return there
    path = Path(name)
    if path.suffix in SINGLE_FILES:
        return "file"
    hub_id = name.partition("@")[0]
    elsewhere = path.is_absolute() or name.startswith((".", "~")) or name.endswith("@")
    elsewhere = elsewhere or hub_id.count("/") != 1 or len(hub_id) > _LONGEST
    return "folder" if elsewhere else "hub"


def at_path(name: str) -> Literal["folder", "file"] | None:
    """What lies at a path of this name."""
    try:
        path = Path(name).expanduser()
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # longer than a path may be, in the home of nobody, with a zero byte
        return None
