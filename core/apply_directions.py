"""Use a set of editing directions in any diffusers pipeline: this file needs torch and safetensors alone.

Every exported set has a copy of it. From inside the set's folder:

    from apply_directions import applied

    with applied(pipeline.unet, ".", "smile", scale=1.0):
        images = pipeline(num_inference_steps=50).images

The network is the pipeline's `unet`, or its `transformer`. A direction is a name, a number, or several with a scale
each, as in {"smile": 1.0, "yaw": -0.5}. Sets that were found with asymmetric injection (Kwon et al., arXiv 2210.10960)
need the pipeline's scheduler too: applied(pipeline.unet, ".", "smile", asymmetric=pipeline.scheduler).
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

MID_BLOCK = "mid_block"


@contextmanager
def applied(
    network: nn.Module,
    folder: str | Path,
    direction: int | str | Mapping[int | str, float],
    scale: float = 1.0,
    steps: int | None = None,
    asymmetric: Any = None,
) -> Iterator[None]:
    """Edit whatever `network` draws inside the block.

    scale: 1.0 moves images equally far for every direction of a calibrated set; signed. steps: the pipeline's number of
    inference steps where it is not the set's own; each shift is then scaled by the ratio of the two. asymmetric: the
    pipeline's scheduler, for a shift of the predicted image alone; each step then runs the network twice.
    """
    tensors = load_file(Path(folder) / "directions.safetensors")
    told = json.loads((Path(folder) / "directions.json").read_text())
    names, timesteps, origin = told["names"], told["timesteps"], told["provenance"]
    edit = direction if isinstance(direction, Mapping) else {direction: 1.0}
    rows = {names.index(k) if isinstance(k, str) else k: own for k, own in edit.items()}
    ratio = len(timesteps) / steps if steps else 1.0

    def shift(i: int) -> Tensor:
        s = i if tensors["table"].shape[1] > 1 else 0
        parts = [own * tensors["sigma"][k, s] * tensors["table"][k, s] for k, own in rows.items()]
        return scale * ratio * torch.stack(parts).sum(dim=0, keepdim=True)

    with shifted(network, shift, timesteps, asymmetric, tap=tap_of(origin), both=shifts_both(origin)):
        yield


def tap_of(origin: Mapping[str, Any]) -> str:
    """The submodule behind which a set shifts, as its provenance has it."""
    return str(origin.get("tap", MID_BLOCK))


def shifts_both(origin: Mapping[str, Any]) -> bool:
    """Whether a set shifts both halves of a batch under classifier-free guidance, or the conditional one."""
    use = origin.get("use")
    return not (isinstance(use, Mapping) and use.get("shifted") == "conditional")


@contextmanager
def shifted(
    network: nn.Module,
    shift: Callable[[int], Tensor | None],
    timesteps: Sequence[float],
    asymmetric: Any = None,
    error: type[Exception] = ValueError,
    tap: str = MID_BLOCK,
    both: bool = True,
) -> Iterator[None]:
    """Add shift(i), [1, C, H, W], to what leaves the submodule `tap`; i is the nearest of `timesteps`.

    Maps [N, C, H, W] are shifted place by place, image tokens [N, L, C] one by one in the order of their grid, both all
    alike where H and W are 1. both: False shifts the conditional half of a batch under classifier-free guidance only.
    The hooks go, whatever happens inside.
    """
    module = dict(network.named_modules()).get(tap)
    if module is None:
        raise error(f"a {type(network).__name__} has no {tap} to shift: give the pipeline's unet, or its transformer")
    if asymmetric is not None and type(asymmetric).__name__ not in _MIXED:
        raise error(f"asymmetric: got a {type(asymmetric).__name__}; allowed: {', '.join(_MIXED)}, with eta 0")
    now = {"timestep": 0.0, "shifts": True}
    # Flux is told thousandths; DiT's pipeline has the conditional half first, all others second.
    kind = type(network).__name__
    unit, first = 1000.0 if kind.startswith("Flux") else 1.0, kind.startswith("DiT")

    def remember_timestep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now["timestep"] = unit * float(torch.as_tensor(told).reshape(-1)[0])

    def add_shift(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        nearest = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - now["timestep"]))
        delta_h = shift(nearest) if now["shifts"] else None
        if delta_h is None:
            return output
        h = output if isinstance(output, Tensor) else output[-1]  # text tokens come first
        delta = _laid_out(delta_h, h, error)
        if not both:
            rows = torch.arange(len(h), device=h.device) < len(h) // 2
            delta = delta * (rows if first else ~rows).reshape(-1, *[1] * (h.ndim - 1)).to(delta)
        moved = h + delta.to(h)
        return moved if isinstance(output, Tensor) else (*output[:-1], moved)

    def mix(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not now["shifts"]:
            return output
        now["shifts"] = False
        try:
            plain = module(*args, **kwargs)
        finally:
            now["shifts"] = True
        share = _share(asymmetric, now["timestep"])
        mixed = share * output[0] + (1 - share) * plain[0]
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    hooks = [
        network.register_forward_pre_hook(remember_timestep, with_kwargs=True),
        module.register_forward_hook(add_shift),
    ]
    if asymmetric is not None:
        hooks.append(network.register_forward_hook(mix, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _laid_out(delta_h: Tensor, h: Tensor, error: type[Exception]) -> Tensor:
    """A shift [N, C, H, W] as it is added to maps [N, C, H, W] or to tokens [N, L, C]."""
    own = list(h.shape[1:]) if h.ndim == 4 else [h.shape[2], h.shape[1]]
    places, wanted = math.prod(delta_h.shape[2:]), math.prod(own[1:])
    if delta_h.shape[1] != own[0] or places not in (1, wanted):
        raise error(f"the set is for h of shape {list(delta_h.shape[1:])}; this model has {own}")
    if h.ndim == 3:
        return delta_h.flatten(2).mT
    if h.ndim == 4 and places == wanted and delta_h.shape[2:] != h.shape[2:]:
        if delta_h.shape[3] != 1:  # a map of another form
            raise error(f"the set is for h of shape {list(delta_h.shape[1:])}; this model has {own}")
        return delta_h.reshape(len(delta_h), *own)
    return delta_h


def _share(scheduler: Any, t: float) -> float:
    """How much of the shifted output, against the plain one, makes a step shift its predicted image alone.

    A step is c_p output + c_d output and more, where the first comes from the predicted image and the second from the
    noise that is put back; with c_p shifted + c_d plain in its place, the share of the shifted is c_p / (c_p + c_d).
    """
    (a, s), (a_prev, s_prev), prediction = _MIXED[type(scheduler).__name__](scheduler, t)
    c_p, c_d = {
        "epsilon": (-a_prev * s / a if a else -math.inf, s_prev),
        "v_prediction": (-a_prev * s, s_prev * a),
        "sample": (a_prev, -s_prev * a / s),
    }[prediction]
    return c_p / (c_p + c_d)


Level = tuple[float, float]  # how much of a state is image, and how much noise


def _of_ddim(scheduler: Any, t: float) -> tuple[Level, Level, str]:
    previous = int(t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    a = float(scheduler.alphas_cumprod[int(t)])
    a_prev = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    levels = [(math.sqrt(each), math.sqrt(1 - each)) for each in (a, a_prev)]
    return levels[0], levels[1], scheduler.config.prediction_type


def _of_flow(scheduler: Any, t: float) -> tuple[Level, Level, str]:
    i = int((scheduler.timesteps.cpu() - t).abs().argmin())
    s, s_prev = float(scheduler.sigmas[i]), float(scheduler.sigmas[i + 1])
    return (1 - s, s), (1 - s_prev, s_prev), "v_prediction"  # a flow's velocity enters a step as v does


_MIXED = {"DDIMScheduler": _of_ddim, "FlowMatchEulerDiscreteScheduler": _of_flow}
