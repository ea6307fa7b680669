"""Use a set of editing directions in any diffusers pipeline: this file needs torch and safetensors alone.

Every exported set has a copy of it. From inside the set's folder:

    from apply_directions import applied

    with applied(pipeline.unet, ".", "smile", scale=1.0):
        images = pipeline(num_inference_steps=50).images

The network is the pipeline's `unet`, or its `transformer`. A direction is a name, a number, or several with a scale
each, as in {"smile": 1.0, "yaw": -0.5}. Sets that were found with asymmetric injection (Kwon et al., arXiv 2210.10960)
need the pipeline's scheduler too: applied(pipeline.unet, ".", "smile", asymmetric=pipeline.scheduler).

Sets are found on chains that clip nothing. Where a pipeline's scheduler has clip_sample or thresholding on, as that of
google/ddpm-celebahq-256 has, the same images need one without:

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
    pipeline's scheduler, which may not clip, for a shift of the predicted image alone; each step then runs the network
    twice.
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

    with shifted(network, shift, timesteps, asymmetric, place=place_of(origin)):
        yield


class Place(NamedTuple):
    """Where and how a set shifts a network.

    tap: the submodule behind which; output: which of several outputs of it; both: whether in both halves of a batch
    under classifier-free guidance, or in the conditional one; clock: (a, b) where the network is told a t + b for t.
    """

    tap: str = MID_BLOCK
    output: int = -1  # text tokens come first
    both: bool = True
    clock: tuple[float, float] | None = None


def place_of(origin: Mapping[str, Any], error: type[Exception] = ValueError) -> Place:
    """As a set's provenance has it, which a stranger may have written: raises `error` for what cannot be."""
    use, output, clock = origin.get("use"), origin.get("output", -1), origin.get("clock")
    if type(output) is not int:
        raise error(f"output: got {output!r}; allowed: the number of an output of the tap")
    if clock is not None:
        numbers = isinstance(clock, list | tuple) and all(type(each) in (int, float) for each in clock)
        if not numbers or len(clock) != 2 or not all(map(math.isfinite, clock)) or not clock[0]:
            raise error(f"clock: got {clock!r}; allowed: (a, b) of a t + b, with an a other than 0")
        clock = float(clock[0]), float(clock[1])
    both = not (isinstance(use, Mapping) and use.get("shifted") == "conditional")
    return Place(str(origin.get("tap", MID_BLOCK)), output, both, clock)


@contextmanager
def shifted(
    network: nn.Module,
    shift: Callable[[int], Tensor | None],
    timesteps: Sequence[float],
    asymmetric: Any = None,
    error: type[Exception] = ValueError,
    place: Place = Place(),  # noqa: B008  # cannot change
) -> Iterator[None]:
    """Add shift(i), [1, C, H, W], to what leaves the submodule of `place`; i is the nearest of `timesteps`.

    Maps [N, C, H, W] are shifted place by place, image tokens [N, L, C] one by one in the order of their grid, both all
    alike where H and W are 1. The hooks go, whatever happens inside.
    """
    module = dict(network.named_modules()).get(place.tap) if isinstance(network, nn.Module) else None
    if module is None:
        kind = type(network).__name__
        raise error(f"a {kind} has no {place.tap} to shift: give the pipeline's unet, or its transformer")
    if asymmetric is not None and type(asymmetric).__name__ not in _MIXED:
        raise error(f"asymmetric: got a {type(asymmetric).__name__}; allowed: {', '.join(_MIXED)}, with eta 0")
    if asymmetric is not None and (clips := [name for name in _CLIPS if asymmetric.config.get(name)]):
        kind = type(asymmetric).__name__
        raise error(
            f"asymmetric: the scheduler has {' and '.join(clips)} on, with which a step is no sum to be mixed: set "
            f"pipeline.scheduler = {kind}.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)"
        )
    now = {"timestep": 0.0, "shifts": True}
    # Flux is told thousandths; DiT's pipeline has the conditional half first, all others second.
    kind = type(network).__name__
    pace, zero = place.clock or ((0.001, 0.0) if kind.startswith("Flux") else (1.0, 0.0))
    first = kind.startswith("DiT")

    def remember_timestep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now["timestep"] = (float(torch.as_tensor(told).reshape(-1)[0]) - zero) / pace

    def add_shift(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        nearest = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - now["timestep"]))
        delta_h = shift(nearest) if now["shifts"] else None
        if delta_h is None:
            return output
        parts = [output] if isinstance(output, Tensor) else list(output)
        number = 0 if isinstance(output, Tensor) else place.output
        if not -len(parts) <= number < len(parts):
            raise error(f"output: got {number}; {place.tap} gives {len(parts)} outputs")
        h = parts[number]
        delta = _laid_out(delta_h, h, error)
        if not place.both:
            rows = torch.arange(len(h), device=h.device) < len(h) // 2
            delta = delta * (rows if first else ~rows).reshape(-1, *[1] * (h.ndim - 1)).to(delta)
        parts[number] = h + delta.to(h)
        return parts[0] if isinstance(output, Tensor) else tuple(parts)

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


_CLIPS = ("clip_sample", "thresholding")  # what makes a step other than a sum, where a scheduler has it on
_MIXED = {"DDIMScheduler": _of_ddim, "FlowMatchEulerDiscreteScheduler": _of_flow}
