"""Networks without data: their class, the shape of what they draw, and copies on torch's meta device."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from core.errors import ModelError, UserError
from core.model.families import family_of
from core.quiet import quiet_diffusers


def class_of(config: Mapping[str, Any]) -> Any:
    """Return the diffusers class that a configuration names."""
    return getattr(diffusers, config["_class_name"])


def own_shape(network: Any, size: int | None = None, factor: int = 1) -> tuple[int, int, int]:
    """Return (C, H, W) of x_t: the model's own, or that of square images of `size` pixels.

    factor: pixels across one place of x_t, 1 for a pixel model. Raises UserError for a size that the network cannot
    draw, and where neither `size` nor the configuration gives one.
    """
    config, packed = network.config, family_of(type(network).__name__).packed
    channels = int(config["in_channels"]) // (4 if packed else 1)
    if size is not None:
        unit = factor * (2 if packed else _unit(network))
        if size < unit or size % unit:
            raise UserError(f"size: got {size}; this model draws squares of {unit}, {2 * unit}, {3 * unit} ... pixels")
        return channels, size // factor, size // factor
    return channels, *_sides(
        128 if packed else config["sample_size"]
    )  # Flux's size is in its pipeline, not its network


def _sides(sample_size: object) -> tuple[int, int]:
    """Return the height and width that a configuration's sample_size gives."""
    if sample_size is None:
        raise UserError("size: the model's configuration names none: give the side of its images in pixels")
    sides = sample_size if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise ModelError(
            f"the model's configuration has the sample_size {sample_size!r}; allowed: a whole number, or two"
        )
    height, width = sides
    return height, width


def _unit(network: Any) -> int:
    """Return the number of places of which height and width have to be multiples."""
    if "patch_size" in network.config and network.config["patch_size"]:
        return int(network.config["patch_size"])
    return int(2 ** (len(network.config["block_out_channels"]) - 1))


def empty_network(network: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return a network on the meta device, without data, from a network or from its configuration."""
    config = network if isinstance(network, Mapping) else getattr(network, "config", None)
    if config is None:
        empty = rebuilt(network, lambda tensor: tensor.to("meta"))
    else:
        kind = class_of(config) if isinstance(network, Mapping) else type(network)
        with torch.device("meta"), quiet_diffusers():
            empty = kind.from_config(config)
    nn.Module.to(empty, dtype=dtype)
    return empty.eval().requires_grad_(False)


def rebuilt(network: Any, moved: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of the network's modules around other tensors, each of them `moved` from the original.

    The original tensors are not copied on the way.
    """
    replaced: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        replacement = moved(tensor).detach()
        replaced[id(tensor)] = (
            nn.Parameter(replacement, requires_grad=False) if isinstance(tensor, nn.Parameter) else replacement
        )
    return copy.deepcopy(network, replaced)
