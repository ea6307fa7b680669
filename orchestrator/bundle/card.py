"""Write the card of a direction set in Markdown: what it holds, how good it is, how to use it.

Text from the set is quoted, so that it cannot change the structure of the card.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from core.directions.dials import Dial
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.intervals import interval_of
from core.metrics import METRICS
from core.model.catalogue import at_path, origin_of
from core.model.families import family_of
from core.model.use import Use
from orchestrator.text import in_code, number

_SHOWN = 3  # attributes shown for a direction
_LEAST = 0.2  # standard deviations; weaker effects are not shown

_ALONE = """{imports}from diffusers import {imported}
from apply_directions import applied  # the file in this folder; needs torch and safetensors alone

pipeline = {pipeline}.from_pretrained({model}){whence}
{before}with applied(pipeline.{network}, ".", {name}, scale=1.0{asymmetric}):
    images = pipeline({arguments}num_inference_steps={steps}{eta}).images"""

_WITH_PACKAGE = """from core import DirectionSet

directions = DirectionSet.load(".")
with directions.applied(pipeline.{network}, {edit}{asymmetric}):
    images = pipeline({arguments}num_inference_steps={steps}{eta}).images"""

# The steps of the package's own chain, whatever the model's own are: they clip nothing (core.model.schedulers).
# "_use_default_values" is emptied, else this scheduler would use its own defaults for what the model's file leaves out.
_SWAP = """\
# The set was found with steps of {sampler}; where the model's own scheduler is another, its timesteps differ a little.
known = signature(type(pipeline.scheduler)).parameters  # without what its file has left over of another scheduler
config = {{name: value for name, value in pipeline.scheduler.config.items() if name in known}}
config["_use_default_values"] = []
pipeline.scheduler = {sampler}.from_config(config, clip_sample=False, thresholding=False)
"""
_RESCALED = "pipeline.vqvae.register_to_config(scaling_factor=1.0)\n"
_SWAPPED = ("DDIMScheduler", "LCMScheduler")
_RESIZED = "pipeline.{network}.register_to_config(sample_size={side})\n"  # for pipelines without a size argument


_INTERVAL = """
The 95 % interval says how far a value may be from what endlessly many samples would give: of 100 such intervals, each
from other samples, about 95 hold it."""

_PICTURES = """![Every direction (down) across its scale (across)](traversal.png)

`gallery.html` shows every direction on several samples, with a slider."""


def card(directions: DirectionSet, for_hub: bool = False, pictures: bool = True) -> str:
    """Return the card in Markdown; for a hub with the front matter that its search reads.

    pictures: whether the bundle has its gallery and its picture.
    """
    origin = directions.provenance
    origins = {key: in_code(origin.get(key)) for key in ("model", "method", "trial", "sweep", "weight_digest")}
    parts = [
        _front_matter(directions) if for_hub else "",
        f"# {len(directions)} directions in the h-space of `{origins['model']}`",
        f"Found by the method `{origins['method']}` in trial `{origins['trial']}` of the sweep `{origins['sweep']}`.\n"
        f"Made for the weights with digest `{origins['weight_digest'][:16]}` and {len(directions.timesteps)} steps.",
        _PICTURES if pictures else "",
        "## Directions",
        _directions(directions),
        "## Use",
        _use(directions, for_hub),
        "## How good it is",
        _metrics(directions),
        "## Where it comes from",
        f"```json\n{_fenced(json.dumps(dict(origin), indent=2, sort_keys=True, ensure_ascii=True))}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(directions: DirectionSet) -> str:
    model = str(directions.provenance.get("model"))
    hub_id = model.partition("@")[0]
    matter = {
        "library_name": "diffusers",
        "tags": ["h-space", "image-editing", "diffusion", "interpretability"],
        **({"base_model": hub_id} if origin_of(model) == "hub" else {}),
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---"


def _directions(directions: DirectionSet) -> str:
    if not directions.dials:
        names = "\n".join(f"- `{in_code(name)}`" for name in directions.names)
        return f"Nobody has measured their scales: 1.0 is what the method made of it.\n\n{names}"
    order = sorted(range(len(directions)), key=lambda k: -directions.dials[k].score)
    rows = "\n".join(_row(directions.names[k], directions.dials[k]) for k in order)
    strength = directions.provenance.get("strength", 0.5)
    return f"""Scale 1.0 moves images equally far for every direction: {strength:g} of the distance of two samples.
Between the ends of its range the median image is as near to the model's own images as nine in ten of them are to each
other. Score is consistency (does the same to every sample) times distinctness (no other direction does it too), 0 to 1.
Effects are those of scale 1, in standard deviations.

| direction | score | consistency | distinctness | range | effects |
|---|---|---|---|---|---|
{rows}"""


def _row(name: str, dial: Dial) -> str:
    strongest = sorted(dial.effects.items(), key=lambda item: -abs(item[1]))[:_SHOWN]
    effects = ", ".join(f"`{_cell(attribute)}` {by:+.1f}" for attribute, by in strongest if abs(by) >= _LEAST)
    low, high = dial.range
    numbers = f"{dial.score:.2f} | {dial.consistency:.2f} | {dial.distinctness:.2f}"
    return f"| `{_cell(name)}` | {numbers} | {low:+g} to {high:+g} | {effects or '-'} |"


def _use(directions: DirectionSet, for_hub: bool) -> str:
    origin = directions.provenance
    asymmetric = ", asymmetric=pipeline.scheduler" if origin.get("injection") == "asymmetric" else ""
    family = _pipeline(origin)
    named = _model(str(origin.get("model")), for_hub)
    imports = [named.pop("imports"), "from inspect import signature" if "signature(" in family["before"] else ""]
    two = dict(zip(directions.names[:2], (1.0, -0.5), strict=False))
    values = {
        **named,
        "imports": "".join(f"{line}\n" for line in imports if line) + "\n" * any(imports),
        "name": _quoted(directions.names[0]),
        "edit": "{" + ", ".join(f"{_quoted(name)}: {scale}" for name, scale in two.items()) + "}",
        "steps": len(directions.timesteps),
        "asymmetric": asymmetric,
        **family,
    }
    return f"""With diffusers alone:

```python
{_ALONE.format(**values)}
```

With this package, several at once (`orchestrate explore .` is a page with a slider for each):

```python
{_WITH_PACKAGE.format(**values)}
```"""


def _model(model: str, for_hub: bool) -> dict[str, str]:
    """Return the code that names the model, from whatever folder it runs, and a remark on where that is.

    for_hub: the card will be read on other machines, to which the folders of this one are nothing.
    """
    match origin_of(model):
        case "built-in":
            named = f'files("core.zoo") / {_quoted(model)}'
            imports, whence = "from importlib.resources import files", "of h-space-orchestrator"
        case "hub":
            name, at, revision = model.partition("@")
            named = _quoted(name) + (f", revision={_quoted(revision)}" if at else "")
            imports, whence = "", ""
        case "registered":
            named, imports, whence = _quoted(model), "", ""
        case _ if at_path(model) and not for_hub:
            named = _quoted(Path(model).expanduser().resolve())
            imports, whence = "", "on the machine that wrote this card"
        case _:
            named, imports, whence = _quoted(model), "", "a path on the machine of the sweep, as the sweep file has it"
    return {"model": named, "imports": imports, "whence": f"  # {whence}" if whence else ""}


def _pipeline(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of the code that depend on the model's family: pipeline, arguments, and changes made before."""
    kind = str(origin.get("network", "UNet2DModel"))
    pixels = kind == "UNet2DModel" and not origin.get("codec")
    pipeline = "DDIMPipeline" if pixels else "DiffusionPipeline"
    network = "unet" if kind.startswith("UNet") else "transformer"
    sampler = origin.get("sampler", "DDIMScheduler" if kind == "UNet2DModel" else None)
    swapped, eta = sampler in _SWAPPED, origin.get("eta", 0.0)
    eta = float(eta) if isinstance(eta, int | float) else 0.0
    return {
        "pipeline": pipeline,
        "imported": ", ".join(sorted([pipeline, *([sampler] if swapped else [])])),
        "network": network,
        "arguments": _pipeline_arguments(origin, kind),
        "eta": f", eta={eta}" if pixels or (eta and not family_of(kind).guided_classes) else "",
        "before": (_SWAP.format(sampler=sampler) if swapped else "")
        + _rescaled(origin)
        + _resized(origin, kind, network),
    }


def _pipeline_arguments(origin: Mapping[str, Any], kind: str) -> str:
    """Return the arguments that make a pipeline draw what the chain drew: prompt or class, guidance, size."""
    use = _use_of(origin)
    guidance = f", guidance_scale={_guidance(origin, kind, use):g}"
    family = family_of(kind)
    if family.guided_classes:
        return f"class_labels={[(use.classes or (1000,))[0]]}{guidance}, "
    if family.own_size:
        return ""
    negative = f", negative_prompt={_quoted(use.negative_prompt)}" if use.negative_prompt else ""
    size = f", height={use.size}, width={use.size}" if use.size else ""
    return f"{_quoted((use.prompts or ('',))[0])}{negative}{guidance}{size}{family_of(kind).pipeline_arguments}, "


def _guidance(origin: Mapping[str, Any], kind: str, use: Use) -> float:
    """Return the guidance of the set; else the usual one of a distilled network; else 1, which is no guidance."""
    if use.guidance is not None:
        return use.guidance
    inputs = origin.get("told")
    if isinstance(inputs, list | tuple):
        distilled = "guidance" in inputs or "timestep_cond" in inputs
    else:  # an older set, which does not contain `told`
        distilled = kind.startswith("Flux") or origin.get("sampler") == "LCMScheduler"
    return family_of(kind).distilled_guidance if distilled else 1.0


def _rescaled(origin: Mapping[str, Any]) -> str:
    """Return the line for a VQModel with scaling 1: diffusers makes up another scaling where its file names none."""
    return _RESCALED if origin.get("codec") == "VQModel" and origin.get("scaling_factor") == 1 else ""


def _resized(origin: Mapping[str, Any], kind: str, network: str) -> str:
    """Return the line for a set of another size, for pipelines that draw at their network's configured size."""
    shape = origin.get("sample_shape")
    if _use_of(origin).size is None or not family_of(kind).own_size:
        return ""
    if not isinstance(shape, list | tuple) or len(shape) != 3 or type(shape[2]) is not int:
        return ""
    return _RESIZED.format(network=network, side=shape[2])


def _use_of(origin: Mapping[str, Any]) -> Use:
    try:
        return Use.of(origin.get("use", {}))
    except UserError:  # a set from elsewhere may hold anything
        return Use()


def _metrics(directions: DirectionSet) -> str:
    rows = list(_metric_rows(directions))
    if not rows:
        return ""
    scale = " Each direction was measured at the strength at which its sweep compares trials."
    interval = _INTERVAL if any(interval_of(directions.metrics, name) for name in METRICS) else ""
    return (
        f"Measured on samples that neither trained nor chose anything.{scale if directions.dials else ''}{interval}\n\n"
        + "\n".join(["| metric | value | 95 % interval | better |", "|---|---|---|---|", *rows])
    )


def _metric_rows(directions: DirectionSet) -> Iterator[str]:
    for name, mode in METRICS.items():
        if name in directions.metrics:
            value, known = number(directions.metrics[name]), interval_of(directions.metrics, name)
            interval = "-" if known is None else f"{number(known[0])} to {number(known[1])}"
            yield f"| {name} | {value} | {interval} | {'more' if mode == 'max' else 'less'} |"


def _cell(text: str) -> str:
    """Return a text that cannot break out of its table cell."""
    return in_code(text).replace("|", "\\|")


def _quoted(text: object) -> str:
    """Return a string literal of Python that cannot end the code block around it."""
    return json.dumps(str(text)).replace("`", "\\u0060")


def _fenced(text: str) -> str:
    """Return a text that cannot end the code block around it."""
    return text.replace("```", "'''")
