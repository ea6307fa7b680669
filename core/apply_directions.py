"""Use a set of editing directions in any diffusers pipeline with a UNet: this file needs torch and safetensors alone.

Every exported set has a copy of it. From inside the set's folder:

    from apply_directions import applied

    with applied(pipeline.unet, ".", "smile", scale=1.0):
        images = pipeline(num_inference_steps=50).images

A direction is a name, a number, or several with a scale each, as in {"smile": 1.0, "yaw": -0.5}. Sets that were found
with asymmetric injection (Kwon et al., arXiv 2210.10960) need the pipeline's DDIM scheduler too:
applied(pipeline.unet, ".", "smile", asymmetric=pipeline.scheduler).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@contextmanager
def applied(
    unet: nn.Module,
    folder: str | Path,
    direction: int | str | Mapping[int | str, float],
    scale: float = 1.0,
    steps: int | None = None,
    asymmetric: Any = None,
) -> Iterator[None]:
    """Edit whatever `unet` draws inside the block.

    scale: 1.0 moves images equally far for every direction of a calibrated set; signed. steps: the pipeline's number of
    inference steps where it is not the set's own; each shift is then scaled by the ratio of the two. asymmetric: the
    pipeline's DDIMScheduler, for a shift of the predicted image alone; each step then runs the UNet twice.
    """
    tensors = load_file(Path(folder) / "directions.safetensors")
    told = json.loads((Path(folder) / "directions.json").read_text())
    names, timesteps = told["names"], told["timesteps"]
    edit = direction if isinstance(direction, Mapping) else {direction: 1.0}
    rows = {names.index(k) if isinstance(k, str) else k: own for k, own in edit.items()}
    ratio = len(timesteps) / steps if steps else 1.0

    def shift(i: int) -> Tensor:
        s = i if tensors["table"].shape[1] > 1 else 0
        parts = [own * tensors["sigma"][k, s] * tensors["table"][k, s] for k, own in rows.items()]
        return scale * ratio * torch.stack(parts).sum(dim=0, keepdim=True)

    with shifted(unet, shift, timesteps, asymmetric):
        yield


@contextmanager
def shifted(
    unet: nn.Module,
    shift: Callable[[int], Tensor | None],
    timesteps: Sequence[int],
    asymmetric: Any = None,
    error: type[Exception] = ValueError,
) -> Iterator[None]:
    """Add shift(i), [1, C, H, W], to the output of the UNet's mid block; i is the nearest of `timesteps`.

    Under classifier-free guidance both halves of the batch are shifted alike. The hooks go, whatever happens inside.
    """
    mid_block = getattr(unet, "mid_block", None)
    if not isinstance(mid_block, nn.Module):
        raise error(f"a {type(unet).__name__} has no mid block to shift: give the pipeline's UNet")
    if asymmetric is not None and type(asymmetric).__name__ != "DDIMScheduler":
        raise error(f"asymmetric: got a {type(asymmetric).__name__}; a DDIMScheduler is needed, with eta 0")
    now = {"timestep": 0.0, "shifts": True}

    def remember_timestep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now["timestep"] = float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).reshape(-1)[0])

    def add_shift(_module: nn.Module, _inputs: tuple[Any, ...], h: Tensor) -> Tensor:
        nearest = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - now["timestep"]))
        delta_h = shift(nearest) if now["shifts"] else None
        if delta_h is None:
            return h
        if delta_h.shape[1:] != h.shape[1:]:
            raise error(f"the set is for h of shape {list(delta_h.shape[1:])}; this model has {list(h.shape[1:])}")
        return h + delta_h.to(h)

    def mix(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not now["shifts"]:
            return output
        now["shifts"] = False
        try:
            plain = module(*args, **kwargs)
        finally:
            now["shifts"] = True
        share = _share(asymmetric, int(now["timestep"]))
        mixed = share * output[0] + (1 - share) * plain[0]
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    hooks = [
        unet.register_forward_pre_hook(remember_timestep, with_kwargs=True),
        mid_block.register_forward_hook(add_shift),
    ]
    if asymmetric is not None:
        hooks.append(unet.register_forward_hook(mix, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _share(scheduler: Any, t: int) -> float:
    """How much of the shifted noise, against the plain one, makes a DDIM step shift its predicted image alone.

    A step is c_p eps + c_d eps and more, where the first comes from the predicted image and the second from the
    direction to x_t; with c_p eps_shifted + c_d eps_plain in its place, the share of eps_shifted is c_p / (c_p + c_d).
    """
    previous = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    a = float(scheduler.alphas_cumprod[t])
    a_prev = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    c_p, c_d = -math.sqrt(a_prev * (1 - a) / a), math.sqrt(1 - a_prev)
    return c_p / (c_p + c_d)
