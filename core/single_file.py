"""A checkpoint of one file, as the original trainers write them: unpacked once into a diffusers folder beside it.

diffusers knows the layouts and turns them into its own; what the file does not hold (configurations, tokenizers) it
fetches from the hub. Pickles (.ckpt, .pt) are not read: they can run code.
"""

from pathlib import Path
from typing import Any

import diffusers

from core.errors import ModelError, first_line
from core.files import atomic_folder
from core.quiet import quiet_diffusers, quiet_transformers

SUFFIX = ".safetensors"
# diffusers' word for what a file holds begins with -> the pipeline that draws with it
_PIPELINES = {
    "xl_base": "StableDiffusionXLPipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
}


def unpacked(file: Path) -> Path:
    """The diffusers folder of a single file: NAME.diffusers beside NAME.safetensors, made where it is not there.

    Raises ModelError, in one sentence, for a pickle, a layout that diffusers does not know, or where what the file
    lacks cannot be fetched.
    """
    if file.suffix != SUFFIX:
        raise ModelError(
            f"model '{file}' is not a safetensors file, and others are not read, for a pickle can run code; if you "
            f'trust it, convert it once: python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{file}', map_location='cpu', weights_only=True); "
            f"save_file({{k: v.clone() for k, v in w.get('state_dict', w).items() if hasattr(v, 'clone')}}, "
            f"'{file.with_suffix(SUFFIX)}')\""
        )
    folder = file.with_suffix(".diffusers")
    if folder.is_dir():
        return folder
    try:
        with quiet_diffusers(), quiet_transformers():
            pipeline = _pipeline_of(file).from_single_file(str(file))
            with atomic_folder(folder) as temporary:
                pipeline.save_pretrained(temporary, safe_serialization=True)
    except ModelError:
        raise
    except Exception as error:  # diffusers, the hub and the disk have dozens; the user has one problem
        raise ModelError(
            f"model '{file}' cannot be unpacked into {folder} ({type(error).__name__}: {first_line(error)}): its "
            "configuration comes from the hub, and the folder of the file must take the result"
        ) from error
    return folder


def _pipeline_of(file: Path) -> Any:
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type
    from safetensors.torch import load_file

    kind = str(infer_diffusers_model_type(load_file(file)))
    name = next((pipeline for known, pipeline in _PIPELINES.items() if kind.startswith(known)), None)
    if name is None or kind.startswith("xl_inpaint"):
        raise ModelError(f"model '{file}' is a single file of kind '{kind}'; allowed: {', '.join(_PIPELINES)}")
    return getattr(diffusers, name)
