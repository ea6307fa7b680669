"""Networks as shapes: without data, and how large what they draw is."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from core.errors import ModelError, UserError
from core.quiet import quiet_diffusers


def class_of(config: Mapping[str, Any]) -> Any:
    """The class of diffusers that a configuration is of."""
    return getattr(diffusers, config["_class_name"])


def own_shape(network: Any, size: int | None = None, factor: int = 1) -> tuple[int, int, int]:
    """(C, H, W) of x_t: as the model has it, or for square images of `size` pixels, `factor` of them a place.

    Raises UserError for a size that the network cannot draw, and where there is none.
    """
    config, kind = network.config, type(network).__name__
    flux = kind == "FluxTransformer2DModel"
    channels = int(config["in_channels"]) // (4 if flux else 1)
    if size is not None:
        unit = factor * (2 if flux else _unit(network))
        if size < unit or size % unit:
            raise UserError(f"size: got {size}; this model draws squares of {unit}, {2 * unit}, {3 * unit} ... pixels")
        return channels, size // factor, size // factor
    return channels, *_sides(128 if flux else config["sample_size"])  # Flux's pipeline has the size, not its network


def _sides(told: object) -> tuple[int, int]:
    """Height and width, of a configuration's sample_size."""
    if told is None:
        raise UserError("size: the model's configuration names none: give the side of its images in pixels")
    sides = told if isinstance(told, list | tuple) else (told, told)
    if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise ModelError(f"the model's configuration has the sample_size {told!r}; allowed: a whole number, or two")
    height, width = sides
    return height, width


def _unit(network: Any) -> int:
    """The places across which a network needs a multiple of."""
    if "patch_size" in network.config and network.config["patch_size"]:
        return int(network.config["patch_size"])
    return int(2 ** (len(network.config["block_out_channels"]) - 1))


def empty_network(network: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A network, or that of a configuration, on the meta device: every shape, and no data."""
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
    """The network's modules around other tensors, each `moved` from its own; what it has is not copied on the way."""
    replaced: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        found = moved(tensor).detach()
        replaced[id(tensor)] = nn.Parameter(found, requires_grad=False) if isinstance(tensor, nn.Parameter) else found
    return copy.deepcopy(network, replaced)
