"""Turn prompts and classes into a network's inputs (core.model.condition), with the pipeline's own text encoders.

The encoders come with the model. They run once, when the model is loaded, and are then freed: a sweep keeps only the
embeddings.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from core.errors import ModelError, UserError, first_line
from core.files import why_unreadable
from core.model.codec import Codec
from core.model.condition import Condition
from core.model.families import Family, family_of
from core.model.pretrained import ModelFolder
from core.model.use import Use
from core.quiet import quiet_diffusers, quiet_transformers

Rows = dict[str, Tensor]
_NULL_CLASS = 1000  # the class of no class in DiT's pipeline
_PROMPT_LENGTH = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # whatever their tokenizers could read


def condition_of(
    model_folder: ModelFolder,
    network: Any,
    codec: Codec | None,
    use: Use,
    image_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Condition:
    """Return the condition of a loaded model: its prompts or classes, and its guidance.

    Raises ModelError where the text encoders cannot be read, UserError for prompts, classes or guidance that the model
    does not take.
    """
    check_use(network, use, model_folder.name)
    if not reads_text(network):
        return _of_classes(network, use)
    prompts = list(use.prompts) or [""]
    weight, guided = _weight(network, use), _uses_two_rows(network, use)
    with quiet_diffusers(), quiet_transformers(), torch.no_grad():
        pipeline = _pipeline(model_folder, network, codec, dtype, device)
        _refuse_long(pipeline, (*prompts, use.negative_prompt), network)
        _refuse_refiner(pipeline, model_folder.name)
        try:
            inputs, other = _ENCODERS[_kind(network, pipeline)](
                pipeline, prompts, use.negative_prompt, guided, image_size
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ModelError(f"model '{model_folder.name}' cannot read its prompts: {first_line(error)}") from error
        inputs |= _guidance_input(network, pipeline, weight, len(prompts))
    rows = {name: rows.detach().cpu() for name, rows in inputs.items()}
    unconditional = {name: row.detach().cpu()[:1] for name, row in other.items()}
    return Condition(rows, unconditional, weight if guided else 1.0, use.shifted == "both")


def check_use(network: Any, use: Use, name: str) -> None:
    """Raise UserError where `use` has prompts, classes, guidance or a half to shift that the model does not take."""
    text, classes = reads_text(network), _classes(network)
    if use.prompts and not text:
        raise UserError(f"prompts: model '{name}' reads no text")
    if use.negative_prompt and not (text and _uses_two_rows(network, use)):
        raise UserError(f"negative_prompt: it needs a model that reads text, and a guidance other than 1 ('{name}')")
    if use.classes and not classes:
        raise UserError(f"classes: model '{name}' has no classes")
    if wrong := [label for label in use.classes if not 0 <= label < (classes or 0)]:
        raise UserError(f"classes: got {wrong[0]}; model '{name}' has 0 to {(classes or 0) - 1}")
    if use.guidance not in (None, 1) and not (text or _family(network).guided_classes):
        raise UserError(f"guidance: got {use.guidance}; model '{name}' is told nothing that could be led away from: 1")
    if (
        use.guidance not in (None, 1)
        and type(network).__name__.startswith("Flux")
        and not _takes_guidance_input(network)
    ):
        raise UserError(f"guidance: got {use.guidance}; model '{name}' was distilled to draw without: 1")
    if use.shifted != "both" and not _uses_two_rows(network, use):
        raise UserError(f"shifted: got '{use.shifted}'; without guidance a sample has one half: both")
    if classes and not use.classes and type(network).__name__ == "UNet2DModel":
        raise UserError(f"classes: model '{name}' draws one of {classes} classes: name some, from 0")


def reads_text(network: Any) -> bool:
    """Return whether a network takes a prompt."""
    return _family(network).text_length is not None


def _family(network: Any) -> Family:
    return family_of(type(network).__name__)


def unknown_condition(network: Any, use: Use, length: int | None = None) -> Condition:
    """Return a condition of the right shape without content, for a network that reads text and has no weights.

    Other networks get their real condition: classes, or nothing. Raises ModelError for a network with weights that
    needs a prompt.
    """
    if not reads_text(network):
        return _of_classes(network, use)
    if next(network.parameters()).device.type != "meta":
        raise ModelError(f"a {type(network).__name__} is told what to draw: give a condition (core.model.condition)")
    count, config, kind = max(1, len(use.prompts)), network.config, type(network).__name__
    usual = _family(network).text_length or 0
    tokens = length or usual
    shapes: dict[str, tuple[int, ...]] = {}
    match kind:
        case "UNet2DConditionModel":
            width = config["encoder_hid_dim"] or config["cross_attention_dim"]
            shapes["encoder_hidden_states"] = (tokens, width if isinstance(width, int) else width[0])
            if config["addition_embed_type"] == "text_time":
                sizes = 6 * config["addition_time_embed_dim"]
                shapes["text_embeds"] = (config["projection_class_embeddings_input_dim"] - sizes,)
                shapes["time_ids"] = (6,)
            if config["time_cond_proj_dim"]:
                shapes["timestep_cond"] = (config["time_cond_proj_dim"],)
        case "PixArtTransformer2DModel":
            width = config["caption_channels"] or config["cross_attention_dim"]
            shapes["encoder_hidden_states"] = (tokens, width)
            shapes["encoder_attention_mask"] = (tokens,)
            if network.use_additional_conditions:
                shapes |= {"resolution": (2,), "aspect_ratio": (1,)}
        case "SD3Transformer2DModel":
            shapes["encoder_hidden_states"] = (usual, config["joint_attention_dim"])
            shapes["pooled_projections"] = (config["pooled_projection_dim"],)
        case _:
            shapes["encoder_hidden_states"] = (usual, config["joint_attention_dim"])
            shapes["pooled_projections"] = (config["pooled_projection_dim"],)
            if config["guidance_embeds"]:
                shapes["guidance"] = ()
    inputs = {name: torch.empty(count, *shape, device="meta") for name, shape in shapes.items()}
    guided = _uses_two_rows(network, use)
    other = {name: rows[:1] for name, rows in inputs.items()} if guided else {}
    return Condition(inputs, other, _weight(network, use) if guided else 1.0, use.shifted == "both")


def text_length(model_folder: ModelFolder) -> int | None:
    """Return the number of tokens of a prompt, by the model's pipeline or tokenizer; None where neither gives it."""
    try:
        kind = json.loads((model_folder.folder / "model_index.json").read_text())["_class_name"]
        if kind in _PROMPT_LENGTH:
            return _PROMPT_LENGTH[kind]
        length = json.loads((model_folder.folder / "tokenizer" / "tokenizer_config.json").read_text())[
            "model_max_length"
        ]
        return int(length) if length < 10_000 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _weight(network: Any, use: Use) -> float:
    """Return the weight of guidance: as asked for, else the default of a network that takes it as an input, else 1."""
    if use.guidance is not None:
        return float(use.guidance)
    return _family(network).distilled_guidance if _takes_guidance_input(network) else 1.0


def _uses_two_rows(network: Any, use: Use) -> bool:
    """Return whether guidance takes a second row for every sample."""
    able = reads_text(network) or _family(network).guided_classes
    distilled = _takes_guidance_input(network) or _family(network).always_distilled
    return able and not distilled and _weight(network, use) != 1


def _takes_guidance_input(network: Any) -> bool:
    config = network.config
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def _classes(network: Any) -> int | None:
    """Return the number of classes of a network; None where it has no classes."""
    match type(network).__name__:
        case "DiTTransformer2DModel":
            return int(network.config["num_embeds_ada_norm"])
        case "UNet2DModel" if network.class_embedding is not None:
            return int(network.config["num_class_embeds"] or 0) or None
    return None


def _of_classes(network: Any, use: Use) -> Condition:
    classes = _classes(network)
    if classes is None:
        return Condition()
    null = min(_NULL_CLASS, classes)
    device = next(network.parameters()).device
    guided = _uses_two_rows(network, use)
    inputs = {"class_labels": torch.tensor(list(use.classes) or [null], device=device)}
    other = {"class_labels": torch.tensor([null], device=device)} if guided else {}
    return Condition(inputs, other, _weight(network, use) if guided else 1.0, use.shifted == "both")


def _pipeline(
    model_folder: ModelFolder, network: Any, codec: Codec | None, dtype: torch.dtype, device: torch.device | str
) -> Any:
    """Return the model's own pipeline with its text encoders, around the network and the autoencoder already loaded."""
    try:
        index = json.loads((model_folder.folder / "model_index.json").read_text())
        parts = {name: None for name, kind in index.items() if isinstance(kind, list) and not _reads(name, kind)}
        parts[model_folder.network.name] = network
        if codec is not None and model_folder.codec is not None:
            parts[model_folder.codec.name] = codec.network
        if "scheduler" in parts:
            del parts["scheduler"]
        pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(
            model_folder.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant=model_folder.variant,
            **parts,
        )
    except Exception as error:
        raise ModelError(
            f"model '{model_folder.name}': its text encoders cannot be read: "
            f"{why_unreadable(model_folder.folder, error)}"
        ) from error
    for name in pipeline.components:
        if name.startswith("text_encoder") and getattr(pipeline, name) is not None:
            getattr(pipeline, name).to(device)
    return pipeline


def _refuse_long(pipeline: Any, prompts: Sequence[str], network: Any) -> None:
    """Raise UserError for a prompt that the pipeline of a UNet would cut at the end of its tokenizer."""
    if type(network).__name__ != "UNet2DConditionModel":
        return
    most = int(pipeline.tokenizer.model_max_length) if pipeline.tokenizer else 0
    for prompt in prompts:
        if most and (length := len(pipeline.tokenizer(prompt).input_ids)) > most:
            raise UserError(f"prompts: '{prompt[:40]}...' has {length} tokens; the model reads {most}: shorten it")


def _refuse_refiner(pipeline: Any, name: str) -> None:
    """Raise ModelError for SDXL's refiner, which takes a score in place of a size."""
    if pipeline.config.get("requires_aesthetics_score"):
        raise ModelError(f"model '{name}' is a refiner, which needs an image to begin with: take the base model")


def _reads(name: str, kind: list[Any]) -> bool:
    """Return whether a part of a pipeline is a text encoder or tokenizer, and exists."""
    return name.startswith(("text_encoder", "tokenizer")) and kind[0] is not None


def _kind(network: Any, pipeline: Any) -> str:
    kind = type(network).__name__
    return "sdxl" if kind == "UNet2DConditionModel" and hasattr(pipeline, "text_encoder_2") else kind


def _encode_clip(pipeline: Any, prompts: list[str], negative: str, guided: bool, size: int) -> tuple[Rows, Rows]:
    text, other = pipeline.encode_prompt(
        prompts, _device(pipeline), 1, guided, [negative] * len(prompts) if guided else None
    )
    return {"encoder_hidden_states": text}, {"encoder_hidden_states": other} if guided else {}


def _encode_sdxl(pipeline: Any, prompts: list[str], negative: str, guided: bool, size: int) -> tuple[Rows, Rows]:
    text, other, pooled, other_pooled = pipeline.encode_prompt(
        prompts,
        device=_device(pipeline),
        do_classifier_free_guidance=guided,
        negative_prompt=[negative] * len(prompts) if negative else None,
    )
    sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=text.dtype)  # original size, crop, target size
    inputs = {"encoder_hidden_states": text, "text_embeds": pooled, "time_ids": sizes.expand(len(prompts), -1)}
    if not guided:
        return inputs, {}
    return inputs, {"encoder_hidden_states": other, "text_embeds": other_pooled, "time_ids": sizes}


def _encode_pixart(pipeline: Any, prompts: list[str], negative: str, guided: bool, size: int) -> tuple[Rows, Rows]:
    text, mask, other, other_mask = pipeline.encode_prompt(
        prompts,
        do_classifier_free_guidance=guided,
        negative_prompt=negative,
        device=_device(pipeline),
        clean_caption=False,
    )
    sizes: Rows = {}
    if pipeline.transformer.use_additional_conditions:
        sizes = {
            "resolution": torch.tensor([[size, size]], dtype=text.dtype),
            "aspect_ratio": torch.ones(1, 1, dtype=text.dtype),
        }
    inputs = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    inputs |= {name: row.expand(len(prompts), -1) for name, row in sizes.items()}
    if not guided:
        return inputs, {}
    return inputs, {"encoder_hidden_states": other, "encoder_attention_mask": other_mask, **sizes}


def _encode_sd3(pipeline: Any, prompts: list[str], negative: str, guided: bool, size: int) -> tuple[Rows, Rows]:
    text, other, pooled, other_pooled = pipeline.encode_prompt(
        prompts,
        None,
        None,
        device=_device(pipeline),
        do_classifier_free_guidance=guided,
        negative_prompt=[negative] * len(prompts) if guided else None,
    )
    inputs = {"encoder_hidden_states": text, "pooled_projections": pooled}
    return inputs, {"encoder_hidden_states": other, "pooled_projections": other_pooled} if guided else {}


def _encode_flux(pipeline: Any, prompts: list[str], negative: str, guided: bool, size: int) -> tuple[Rows, Rows]:
    text, pooled, _ = pipeline.encode_prompt(prompts, None, device=_device(pipeline))
    return {"encoder_hidden_states": text, "pooled_projections": pooled}, {}


_ENCODERS: Mapping[str, Callable[[Any, list[str], str, bool, int], tuple[Rows, Rows]]] = {
    "UNet2DConditionModel": _encode_clip,
    "sdxl": _encode_sdxl,
    "PixArtTransformer2DModel": _encode_pixart,
    "SD3Transformer2DModel": _encode_sd3,
    "FluxTransformer2DModel": _encode_flux,
}


def _guidance_input(network: Any, pipeline: Any, weight: float, count: int) -> Rows:
    """Return the guidance as an input, for networks that take it as one."""
    config = network.config
    if config.get("guidance_embeds"):
        return {"guidance": torch.full((count,), weight)}
    if width := config.get("time_cond_proj_dim"):
        scale = torch.full((count,), weight - 1)
        return {"timestep_cond": pipeline.get_guidance_scale_embedding(scale, embedding_dim=width)}
    return {}


def _device(pipeline: Any) -> torch.device:
    """Return the device of the text encoders; a pipeline may lack its first."""
    encoders = (part for name, part in sorted(pipeline.components.items()) if name.startswith("text_encoder") and part)
    device: torch.device = next(next(encoders).parameters()).device
    return device
