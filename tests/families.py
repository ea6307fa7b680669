"""Tiny pipelines of every family of diffusion models: real diffusers classes, random weights, no network.

Each is laid out as the published models of its family are: the same components, schedulers and conditioning, with the
widths and the images made small. `python tests/families.py` builds, saves, reloads and runs them all.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, UNet2DModel

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789!,.'-"
START, END = "<|startoftext|>", "<|endoftext|>"
CLASSES = 1000  # DiTPipeline takes 1000 for the class of no class, whatever its network was built with
LABELS = {0: "tench, Tinca tinca", 1: "goldfish", 2: "white shark"}
PROMPT = "a face"
LATENT = 8  # of 32x32 images
WIDTH = 16  # of the tokens of each text encoder and each transformer
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WARNINGS = (  # of diffusers' own code when its pipelines run; each a pattern and a category
    # `np.array` of a tensor, in `set_timesteps` of the Euler and the DPM schedulers: torch's tensors know no `copy` yet
    ("__array__ implementation doesn't accept a copy keyword", DeprecationWarning),
)
RARE = 0.05  # the standard deviation given to parameters that were all zero


def build(name: str) -> DiffusionPipeline:
    """A new pipeline of the family, in float32 and for inference, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = _BUILDERS[name]()
        for part in networks(pipeline).values():
            wake(part)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def saved(name: str, folder: Path) -> Path:
    """The folder, with the pipeline in it as diffusers saves it."""
    build(name).save_pretrained(folder, safe_serialization=True)
    return folder


def loads(folder: Path) -> DiffusionPipeline:
    """The pipeline as diffusers itself reads it back, from the folder alone."""
    here = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    pipeline = DiffusionPipeline.from_pretrained(folder, **here)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def asks(name: str, steps: int = 2) -> dict[str, Any]:
    """What to call the pipeline with for one small image of `steps` steps, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(5)
    return {"num_inference_steps": steps, "generator": generator, "output_type": "np"} | _CALLS[name]


def networks(pipeline: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def denoiser(pipeline: DiffusionPipeline) -> torch.nn.Module:
    """The network that the pipeline calls at each step."""
    parts = networks(pipeline)
    return parts["transformer"] if "transformer" in parts else parts["unet"]


def middle(net: torch.nn.Module) -> torch.nn.Module:
    """The mid block of a U-Net, or the last of the first half of a transformer's blocks."""
    parts = dict(net.named_children())
    if "mid_block" in parts:
        return parts["mid_block"]
    stacks = [parts[name] for name in ("transformer_blocks", "single_transformer_blocks") if name in parts]
    blocks = [block for stack in stacks for block in stack.children()]
    return blocks[(len(blocks) - 1) // 2]


def wake(net: torch.nn.Module) -> None:
    """Gives small random values to the parameters that are all zero, so that no branch of the network is dead."""
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=RARE)
    net.eval().requires_grad_(False)


def _unet(channels: int, size: int) -> UNet2DModel:
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )


def _conditional(**more: Any) -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion 1.5, with two levels instead of four."""
    sizes: dict[str, Any] = {
        "sample_size": LATENT,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**sizes | more)


def _autoencoder(scaling: float = 0.18215, channels: int = 4, **more: Any) -> AutoencoderKL:
    """Three levels, so a factor of 4; tiles are of 16x16 pixels, a quarter of an image."""
    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=channels,
        scaling_factor=scaling,
        **more,
    )


def _flow_autoencoder(scaling: float, shift: float) -> AutoencoderKL:
    return _autoencoder(scaling, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False)


def _vocabulary() -> list[str]:
    """Of CLIP's tokenizer: letters, letters that end a word, and the two marks; "!" is the first, as in CLIP's own."""
    letters = sorted(LETTERS)
    return [*letters, *(f"{letter}</w>" for letter in letters), START, END]


def _clip_tokenizer(pad: str = END) -> transformers.CLIPTokenizer:
    numbers = {token: number for number, token in enumerate(_vocabulary())}
    return transformers.CLIPTokenizer(numbers, [], pad_token=pad, model_max_length=77)


def _clip(projected: bool = False, **more: Any) -> transformers.PreTrainedModel:
    words = _vocabulary()
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        bos_token_id=words.index(START),
        eos_token_id=words.index(END),
        pad_token_id=words.index(END),
        **more,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def _pieces() -> list[tuple[str, float]]:
    """Of T5's tokenizer, each with its log-probability."""
    marks = [(mark, 0.0) for mark in ("<pad>", "</s>", "<unk>")]
    return [*marks, ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]


def _t5_tokenizer() -> transformers.T5TokenizerFast:
    return transformers.T5TokenizerFast(_pieces(), extra_ids=0, model_max_length=512)


def _t5(width: int = WIDTH) -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(_pieces()),
        d_model=width,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return transformers.T5EncoderModel(config)


def _pixel() -> DiffusionPipeline:
    return diffusers.DDPMPipeline(_unet(3, 16), diffusers.DDPMScheduler())


def _latent() -> DiffusionPipeline:
    """Laid out as CompVis/ldm-celebahq-256."""
    vqvae = diffusers.VQModel(
        sample_size=32,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=3,
        num_vq_embeddings=64,
        vq_embed_dim=3,
    )
    betas = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    return diffusers.LDMPipeline(vqvae, _unet(3, LATENT), diffusers.DDIMScheduler(**betas, clip_sample=False))


def _stable(scheduler: Any, unet: UNet2DConditionModel, kind: str = "StableDiffusionPipeline") -> DiffusionPipeline:
    return getattr(diffusers, kind)(
        vae=_autoencoder(),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd() -> DiffusionPipeline:
    scheduler = diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    return _stable(scheduler, _conditional())


def _sd2(**schedule: Any) -> DiffusionPipeline:
    settings = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"}
    unet = _conditional(use_linear_projection=True, attention_head_dim=[1, 2])
    return _stable(diffusers.DDIMScheduler(**NOISE, **settings, **schedule), unet)


def _sd2_zsnr() -> DiffusionPipeline:
    return _sd2(rescale_betas_zero_snr=True, timestep_spacing="trailing")


def _lcm() -> DiffusionPipeline:
    settings = {"original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": False, "steps_offset": 1}
    scheduler = diffusers.LCMScheduler(**NOISE, **settings, set_alpha_to_one=True)
    return _stable(scheduler, _conditional(time_cond_proj_dim=16), "LatentConsistencyModelPipeline")


def _xl(scheduler: Any) -> DiffusionPipeline:
    unet = _conditional(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2],
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_autoencoder(0.13025, force_upcast=True),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True, hidden_act="gelu"),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(pad="!"),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sdxl() -> DiffusionPipeline:
    return _xl(diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1))


def _sdxl_turbo() -> DiffusionPipeline:
    return _xl(diffusers.EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing", steps_offset=1))


def _dit() -> DiffusionPipeline:
    """Narrower than the others: each of its blocks has its own table of the thousand classes."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=LATENT,
        num_embeds_ada_norm=CLASSES,
    )
    pipeline = diffusers.DiTPipeline(transformer, _autoencoder(), diffusers.DDIMScheduler(clip_sample=False), LABELS)
    pipeline.register_to_config(id2label=LABELS)  # as the published ones have it; the pipeline does not save it itself
    return pipeline


def _pixart() -> DiffusionPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=LATENT,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return diffusers.PixArtAlphaPipeline(_t5_tokenizer(), _t5(), _autoencoder(), transformer, scheduler)


def _sd3() -> DiffusionPipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=2 * LATENT,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_flow_autoencoder(1.5305, 0.0609),
        text_encoder=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(projected=True, hidden_act="gelu"),
        tokenizer_2=_clip_tokenizer(pad="!"),
        text_encoder_3=_t5(2 * WIDTH),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux(dev: bool = True) -> DiffusionPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * 4,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        axes_dims_rope=(2, 2, 4),
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=dev,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
        vae=_flow_autoencoder(0.3611, 0.1159),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
    )


def _flux_schnell() -> DiffusionPipeline:
    return _flux(dev=False)


_BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "pixel": _pixel,
    "latent": _latent,
    "sd": _sd,
    "sd2": _sd2,
    "sd2-zsnr": _sd2_zsnr,
    "sdxl": _sdxl,
    "sdxl-turbo": _sdxl_turbo,
    "lcm": _lcm,
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "flux-schnell": _flux_schnell,
}
FAMILIES = tuple(_BUILDERS)

_SIZE = {"height": 4 * LATENT, "width": 4 * LATENT}
_CALLS: dict[str, dict[str, Any]] = {
    "pixel": {},
    "latent": {},
    "sd": {"prompt": PROMPT, "guidance_scale": 7.5},
    "sd2": {"prompt": PROMPT, "guidance_scale": 7.5},
    "sd2-zsnr": {"prompt": PROMPT, "guidance_scale": 7.5, "guidance_rescale": 0.7},
    "sdxl": {"prompt": PROMPT, "guidance_scale": 5.0},
    "sdxl-turbo": {"prompt": PROMPT, "guidance_scale": 0.0},
    "lcm": {"prompt": PROMPT, "guidance_scale": 8.5},
    "dit": {"class_labels": [1], "guidance_scale": 4.0},
    "pixart": {"prompt": PROMPT, "guidance_scale": 4.5, "clean_caption": False, "use_resolution_binning": False},
    "sd3": {"prompt": PROMPT, "guidance_scale": 7.0, "max_sequence_length": 32},
    "flux": {"prompt": PROMPT, "guidance_scale": 3.5, "max_sequence_length": 32, **_SIZE},
    "flux-schnell": {"prompt": PROMPT, "guidance_scale": 0.0, "max_sequence_length": 32, **_SIZE},
}


def _moved(output: Any) -> Any:
    """What a block gave, with its hidden states, the last of them, shifted; each value otherwise, for norms centre."""
    hidden = output[-1] if isinstance(output, tuple) else output
    shifted = hidden + torch.arange(hidden.numel()).sin().view_as(hidden)
    return (*output[:-1], shifted) if isinstance(output, tuple) else shifted


def _drawn(name: str, pipeline: DiffusionPipeline, **more: Any) -> torch.Tensor:
    return torch.from_numpy(pipeline(**asks(name) | more).images)


def _check(name: str, folder: Path) -> str:
    """Builds, saves, reloads and runs a family; a line on what it is."""
    start = time.perf_counter()
    first, pipeline = build(name), loads(saved(name, folder))
    net, shapes, kept = denoiser(pipeline), [], networks(pipeline)
    for part, module in networks(first).items():
        torch.testing.assert_close(kept[part].state_dict(), module.state_dict(), rtol=0, atol=0)
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".ckpt")]
    assert all(value.dtype == torch.float32 for module in kept.values() for value in module.parameters())
    watching = net.register_forward_pre_hook(
        lambda _, given, named: shapes.append(tuple((*given, named.get("hidden_states"))[0].shape)), with_kwargs=True
    )
    image = _drawn(name, pipeline)
    watching.remove()
    torch.testing.assert_close(_drawn(name, first), image, rtol=0, atol=1e-4)  # its weights lie elsewhere in memory
    seconds = time.perf_counter() - start
    shifting = middle(net).register_forward_hook(lambda _, given, output: _moved(output))
    assert image.isfinite().all() and (_drawn(name, pipeline) - image).abs().max() > 1e-4, "the middle is dead"
    shifting.remove()
    for more in ({"prompt": "a blue dog"},) if "prompt" in _CALLS[name] else ():
        assert (_drawn(name, pipeline, **more) - image).abs().max() > 1e-6, "the prompt is not heard"
    size = sum(value.numel() for value in net.parameters())
    return f"{name:13} {type(net).__name__:24} {size:7,} {str(shapes[0]):16} {tuple(image.shape)} {seconds:5.2f} s"


if __name__ == "__main__":
    warnings.simplefilter("error")
    for pattern, category in WARNINGS:
        warnings.filterwarnings("ignore", pattern, category)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            print(_check(family, Path(place)), flush=True)
