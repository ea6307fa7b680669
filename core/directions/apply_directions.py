"""Use a set of editing directions in any diffusers pipeline. This file needs only torch (2.6 or later) and safetensors.

Every exported set has a copy of this file. From inside the set's folder:

    from apply_directions import applied

    with applied(pipeline.unet, ".", "smile", scale=1.0):
        images = pipeline(num_inference_steps=50).images

The network is the pipeline's `unet` or its `transformer`. A direction is a name, a number, or several with a scale
each, as in {"smile": 1.0, "yaw": -0.5}. Sets that were found with asymmetric injection (Kwon et al., arXiv 2210.10960)
also need the pipeline's scheduler: applied(pipeline.unet, ".", "smile", asymmetric=pipeline.scheduler).

Sets are found on chains without clipping. Where a pipeline's scheduler has clip_sample or thresholding on, as that of
google/ddpm-celebahq-256 has, replace it by one that has both off to get the same images:

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
"""

import difflib
import json
import math
import warnings
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
    """Edit everything that `network` draws inside the `with` block.

    scale: signed; 1.0 moves images equally far for every direction of a calibrated set.
    steps: the pipeline's number of inference steps where it differs from the set's T; shifts are scaled by T / steps.
    A warning after the block says where the pipeline took another number of steps.
    asymmetric: the pipeline's scheduler, to shift only the predicted image. It must not clip, and each step then runs
    the network twice. Raises ValueError for a direction that the set does not have.
    """
    tensors = load_file(Path(folder) / "directions.safetensors")
    description = json.loads((Path(folder) / "directions.json").read_text())
    names, timesteps, origin = description["names"], description["timesteps"], description["provenance"]
    edit = direction if isinstance(direction, Mapping) else {direction: 1.0}
    if not edit:
        raise ValueError("an edit of several directions needs at least one, as in {'smile': 1.0}")
    parts_of_edit = [(index_of(k, names), own) for k, own in edit.items()]
    ratio = len(timesteps) / steps if steps else 1.0

    def shift(i: int) -> Tensor:
        s = i if tensors["table"].shape[1] > 1 else 0
        parts = [own * tensors["sigma"][k, s] * tensors["table"][k, s] for k, own in parts_of_edit]
        return scale * ratio * torch.stack(parts).sum(dim=0, keepdim=True)

    place = place_of(origin)
    with shifted(network, shift, timesteps, asymmetric, place=place), steps_watched(network, timesteps, steps, place):
        yield


def index_of(direction: int | str, names: Sequence[str], error: type[Exception] = ValueError) -> int:
    """Return the number of a direction that is given by number or name. Raises `error` where the set has none such."""
    if isinstance(direction, str):
        if direction in names:
            return names.index(direction)
        near = difflib.get_close_matches(direction, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; it has: {', '.join(names)}"
        raise error(f"the set has no direction named '{direction}'{hint}")
    if not -len(names) <= direction < len(names):
        raise error(f"direction {direction} is outside the set: it has 0 to {len(names) - 1}")
    return direction % len(names)


class ShiftSite(NamedTuple):
    """The place in a network where a set shifts it, and how.

    tap: the submodule whose output is shifted; output: the number of that output where the submodule has several.
    both: whether both halves of a batch under classifier-free guidance are shifted, or only the conditional one.
    clock: (a, b) where the network gets a t + b as its timestep for training timestep t.
    """

    tap: str = MID_BLOCK
    output: int = -1  # the last one: where a submodule returns text tokens and image tokens, the text comes first
    both: bool = True
    clock: tuple[float, float] | None = None


def place_of(origin: Mapping[str, Any], error: type[Exception] = ValueError) -> ShiftSite:
    """Return the ShiftSite that a set's provenance describes. Raises `error` where it holds invalid values.

    The provenance is checked because the set may come from anyone.
    """
    use, output, clock = origin.get("use"), origin.get("output", -1), origin.get("clock")
    if type(output) is not int:
        raise error(f"output: got {output!r}; allowed: the number of an output of the tap")
    if clock is not None:
        numbers = isinstance(clock, list | tuple) and all(type(each) in (int, float) for each in clock)
        if not numbers or len(clock) != 2 or not all(map(math.isfinite, clock)) or not clock[0]:
            raise error(f"clock: got {clock!r}; allowed: (a, b) of a t + b, with an a other than 0")
        clock = float(clock[0]), float(clock[1])
    both = not (isinstance(use, Mapping) and use.get("shifted") == "conditional")
    return ShiftSite(str(origin.get("tap", MID_BLOCK)), output, both, clock)


@contextmanager
def shifted(
    network: nn.Module,
    shift: Callable[[int], Tensor | None],
    timesteps: Sequence[float],
    asymmetric: Any = None,
    error: type[Exception] = ValueError,
    place: ShiftSite = ShiftSite(),  # noqa: B008  # cannot change
) -> Iterator[None]:
    """Add shift(i) [1 or N, C, H, W] to the output of the submodule of `place`, inside the `with` block.

    i is the index of the entry of `timesteps` nearest to the current timestep. Maps [N, C, H, W] are shifted at each
    place, image tokens [N, L, C] one by one in the order of their grid. Where H and W are 1, all places or tokens get
    the same shift. The hooks are removed when the block ends, also by an exception.
    A network that torch.compile has compiled runs uncompiled inside the block: compiled code leaves out new hooks.
    Raises `error` where the network lacks the submodule, the shapes do not agree, or the scheduler cannot be used.
    """
    network = _uncompiled(network)
    module = dict(network.named_modules()).get(place.tap) if isinstance(network, nn.Module) else None
    if module is None:
        kind = type(network).__name__
        raise error(f"a {kind} has no {place.tap} to shift: give the pipeline's unet, or its transformer")
    if asymmetric is not None and type(asymmetric).__name__ not in _LEVELS_OF:
        raise error(f"asymmetric: got a {type(asymmetric).__name__}; allowed: {', '.join(_LEVELS_OF)}, with eta 0")
    if asymmetric is not None and (clips := [name for name in _CLIPS if asymmetric.config.get(name)]):
        kind = type(asymmetric).__name__
        raise error(
            f"asymmetric: the scheduler has {' and '.join(clips)} on, with which a step is no sum to be mixed: set "
            f"pipeline.scheduler = {kind}.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)"
        )
    now = {"timestep": 0.0, "shifts": True}
    first = type(network).__name__.startswith("DiT")  # the conditional half; in all other pipelines it is the second

    def remember_timestep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now["timestep"] = _timestep(network, place, args, kwargs)

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
        share = _shifted_weight(asymmetric, now["timestep"])
        mixed = share * output[0] + (1 - share) * plain[0]
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    hooks = [
        network.register_forward_pre_hook(remember_timestep, with_kwargs=True),
        module.register_forward_hook(add_shift),
    ]
    if asymmetric is not None:
        hooks.append(network.register_forward_hook(mix, with_kwargs=True))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def steps_watched(
    network: nn.Module, timesteps: Sequence[float], steps: int | None, place: ShiftSite
) -> Iterator[None]:
    """Warn at the end of the block where its last image took another number of steps than `steps`, or the set's own."""
    network, inverted = _uncompiled(network), False
    taken: list[float] = []  # timesteps of the last image

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inverted
        t = _timestep(network, place, args, kwargs)
        if taken and t > taken[-1]:
            inverted = len(taken) == 1  # the timesteps rise
            taken.clear()  # another image
        if not taken or t != taken[-1]:
            taken.append(t)

    hook = network.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
    expected = steps or len(timesteps)
    count = expected if inverted else _steps_taken(taken, timesteps, expected)
    if count not in (expected, 2 * expected - 1):  # samplers of second order call the network between steps, too
        warnings.warn(
            f"the pipeline took {count} steps, and the shifts are those of {expected}, so that the edit was "
            f"{count / expected:.2g} times as strong: give applied(..., steps={count}), unless its sampler calls the "
            "network between steps",
            stacklevel=5,  # the block in the user's code
        )


def _steps_taken(taken: Sequence[float], timesteps: Sequence[float], expected: int) -> int:
    """Return how many steps the chain has that passed the timesteps `taken`; `expected` where that cannot be told.

    A chain that begins below the set's first timestep, as those do that go on from a noisy image, has more steps than
    it passed: as many as their distance tells, to a tenth. timesteps: those of the set.
    """
    apart = (timesteps[0] - timesteps[-1]) / (len(timesteps) - 1) if len(timesteps) > 1 else 0.0
    if taken and taken[0] >= timesteps[0] - apart / 2:
        return len(taken)
    if len(taken) < 2 or not apart:
        return expected
    estimated = len(timesteps) * apart * (len(taken) - 1) / (taken[0] - taken[-1])
    return expected if abs(estimated / expected - 1) < 0.1 else round(estimated)


def _uncompiled(network: nn.Module) -> nn.Module:
    """Return the network that torch.compile has wrapped; any other one as it is."""
    inner: nn.Module = getattr(network, "_orig_mod", network)
    return inner


def _timestep(network: nn.Module, place: ShiftSite, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the training timestep of a call of the network."""
    in_thousandths = type(network).__name__.startswith("Flux")
    pace, zero = place.clock or ((0.001, 0.0) if in_thousandths else (1.0, 0.0))
    told = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return (float(torch.as_tensor(told).reshape(-1)[0]) - zero) / pace


def _laid_out(delta_h: Tensor, h: Tensor, error: type[Exception]) -> Tensor:
    """Return a shift [N, C, H, W] in the layout of `h`: maps [N, C, H, W] or tokens [N, L, C].

    Raises `error` where the shapes do not agree.
    """
    own = list(h.shape[1:]) if h.ndim == 4 else [h.shape[2], h.shape[1]]
    places, wanted = math.prod(delta_h.shape[2:]), math.prod(own[1:])
    if delta_h.shape[1] != own[0] or places not in (1, wanted):
        raise error(f"the set is for h of shape {list(delta_h.shape[1:])}; this model has {own}")
    if h.ndim == 3:
        return delta_h.flatten(2).mT
    if h.ndim == 4 and places == wanted and delta_h.shape[2:] != h.shape[2:]:
        if delta_h.shape[3] != 1:  # a map of another height and width
            raise error(f"the set is for h of shape {list(delta_h.shape[1:])}; this model has {own}")
        return delta_h.reshape(len(delta_h), *own)
    return delta_h


def _shifted_weight(scheduler: Any, t: float) -> float:
    """Return the weight of the shifted output, against the plain one, for a step that shifts only its predicted image.

    The network's output enters a step as c_p output + c_d output: the first term comes from the predicted image, the
    second from the noise of x_prev. Asymmetric injection needs c_p shifted + c_d plain. One mixed output has the same
    effect where the weight of the shifted output is c_p / (c_p + c_d).
    """
    (a, s), (a_prev, s_prev), prediction = _LEVELS_OF[type(scheduler).__name__](scheduler, t)
    c_p, c_d = {
        "epsilon": (-a_prev * s / a if a else -math.inf, s_prev),
        "v_prediction": (-a_prev * s, s_prev * a),
        "sample": (a_prev, -s_prev * a / s),
    }[prediction]
    return c_p / (c_p + c_d)


Level = tuple[float, float]  # (signal, noise): the coefficients of image and noise in a state


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


_CLIPS = ("clip_sample", "thresholding")  # scheduler options that make a step nonlinear in the network's output
_LEVELS_OF = {"DDIMScheduler": _of_ddim, "FlowMatchEulerDiscreteScheduler": _of_flow}
