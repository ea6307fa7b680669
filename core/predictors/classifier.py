"""A predictor is a value: named scores of images, from the model's own predictor, any image classifier, or CLIP.

Classifiers and CLIP are those of `transformers`, from a folder or the hub; safetensors only,
and no code that came with them is run.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelError, UserError, first_line
from core.pictures.traversal_grid import to_picture
from core.predictors import clip
from core.predictors.attributes import Attributes
from core.predictors.embedded import embedded_predictor
from core.quiet import quiet_transformers

_EXAMPLE = "google/vit-base-patch16-224"
_REQUIRED = (("config.json",), ("preprocessor_config.json", "processor_config.json"))  # one of each
_TOKENIZER = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "merges.txt", "special_tokens_map.json")
_CLIP = "CLIPModel"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def load(
    predictor: str | None,
    model: str,
    device: torch.device | str = "cpu",
    words: Mapping[str, tuple[str, str]] | None = None,
) -> Attributes | None:
    """The predictor of that name, on `device`; None: the one that ships with `model`, and None if it has none.

    predictor: a folder or hub id of an image-classification model, or of a CLIP model, whose attributes are `words`
    (core.predictors.clip.WORDS where None). Raises ModelError, in one sentence, where it is missing, something else, or
    kept as pickles; UserError for words with a predictor that takes none.
    """
    folder = None if predictor is None else _find_folder(predictor)
    reads_words = folder is not None and predictor is not None and _kind(folder, predictor) == _CLIP
    if words is not None and not reads_words:
        raise UserError(
            f"words: predictor '{predictor or model}' has attributes of its own; only a CLIP model takes words"
        )
    if folder is None or predictor is None:
        return embedded_predictor(model, device)
    _refuse_other_kinds(folder, predictor)
    attributes = (
        _clip(folder, predictor, words or clip.WORDS, device) if reads_words else classifier(folder, predictor, device)
    )
    _try_out(attributes, predictor)
    return attributes


def is_clip(predictor: str) -> bool:
    """Whether its attributes are words, as `load` decides it."""
    return _kind(_find_folder(predictor), predictor) == _CLIP


def _clip(folder: Path, predictor: str, words: Mapping[str, tuple[str, str]], device: torch.device | str) -> Attributes:
    try:
        with quiet_transformers():
            return clip.attributes(folder, words, device)
    except Exception as error:  # as below
        raise ModelError(f"predictor '{predictor}' cannot be read from {folder}: {first_line(error)}") from error


def classifier(folder: Path, predictor: str, device: torch.device | str = "cpu") -> Attributes:
    """Any image classifier of `transformers`: images [N, 1 or 3, H, W] in [-1, 1] -> log-odds [N, A], one per label.

    The pictures go through the classifier's own preprocessing as 8-bit RGB, as the ones it was trained on did, and
    therefore no gradient comes back. See `log_odds` for what a score is.
    """
    try:
        net, processor, missing = _read(folder, device)
    except Exception as error:  # transformers has a dozen exception types; the user has one problem
        raise ModelError(f"predictor '{predictor}' cannot be read from {folder}: {first_line(error)}") from error
    if missing:
        raise ModelError(f"predictor '{predictor}' is not a trained classifier: its weights lack {', '.join(missing)}")
    names = unique_names([net.config.id2label[i] for i in range(net.config.num_labels)])

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        inputs = processor(images=[to_picture(image) for image in images], return_tensors="pt")
        logits: Tensor = net(**inputs.to(device)).logits
        return log_odds(logits, exclusive=_exclusive(net.config))

    return Attributes(names, score)


def log_odds(logits: Tensor, exclusive: bool) -> Tensor:
    """log p - log(1 - p) of every label. logits: [N, A] -> [N, A], float64 where the labels exclude each other.

    A logit behind a sigmoid is that already. Behind a softmax it is not: a constant added to all logits of an image
    changes no probability, so that logits rank images by what no label means. Probabilities rank them as log-odds do,
    but run into 0 and 1, where differences between the most extreme images, the ones that matter, are rounded away.
    """
    if not exclusive:
        return logits
    log_p = logits.double().log_softmax(dim=1)
    log_rest = torch.log(-torch.expm1(log_p))
    # 1 - p is exact for every label but the likeliest; the rest of that one is what the others add up to.
    likeliest = log_p.argmax(dim=1, keepdim=True)
    others = log_p.scatter(1, likeliest, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_p - log_rest.scatter(1, likeliest, others)


def unique_names(labels: list[str]) -> tuple[str, ...]:
    """Labels as names: the number is added to those that occur more than once (ImageNet has two cranes)."""
    count = Counter(labels)
    return tuple(label if count[label] == 1 else f"{label}_{i}" for i, label in enumerate(labels))


def _exclusive(config: Any) -> bool:
    """Whether exactly one label is true of an image: the rule of transformers' own pipeline."""
    return config.problem_type not in ("regression", "multi_label_classification") and config.num_labels > 1


def _find_folder(predictor: str) -> Path:
    folder = Path(predictor).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or predictor.count("/") != 1 or predictor.startswith("."):
        raise ModelError(
            f"predictor '{predictor}' is not there: give a folder or a hub id of an image classifier such as {_EXAMPLE}"
        )
    return _download(predictor)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [
        *itertools.chain(*_REQUIRED),
        *_TOKENIZER,
        "model.safetensors",
        "model-*.safetensors",
        "model.safetensors.index.json",
    ]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub client has a dozen exception types; the user has one problem
        raise ModelError(
            f"predictor '{hub_id}' is neither a folder here nor could it be fetched from the hub "
            f"({type(error).__name__}): check the spelling, your access and the network, or give a local folder"
        ) from error


def _kind(folder: Path, predictor: str) -> str:
    """The class of the model in a folder; no text where there is no configuration."""
    if not (folder / "config.json").is_file():
        return ""
    try:
        config = json.loads((folder / "config.json").read_text())
        return str((config.get("architectures") or ["model of unknown kind"])[0])
    except (ValueError, AttributeError) as error:
        raise ModelError(f"predictor '{predictor}': {folder / 'config.json'} is not a model configuration") from error


def _refuse_other_kinds(folder: Path, predictor: str) -> None:
    """What can be told from the files alone, before anything is loaded."""
    needed = (*_REQUIRED, _TOKENIZER[:2]) if _kind(folder, predictor) == _CLIP else _REQUIRED
    missing = [" or ".join(files) for files in needed if not any((folder / file).is_file() for file in files)]
    if missing:
        raise ModelError(f"predictor '{predictor}' is incomplete: {folder} lacks {' and '.join(missing)}")
    kind = _kind(folder, predictor)
    if "ForImageClassification" not in kind and kind != _CLIP:
        raise ModelError(
            f"predictor '{predictor}' is a {kind}: a transformers image classifier or a CLIP model is needed"
        )
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        only = f", only {', '.join(pickled)}, and pickles are not read: they can run code" if pickled else ""
        raise ModelError(f"predictor '{predictor}' has no safetensors weights in {folder}{only}")


def _read(folder: Path, device: torch.device | str) -> tuple[Any, Callable[..., Any], list[str]]:
    """(network, its preprocessing, names of weights that were not in the file)."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    with quiet_transformers():
        # Without the choice of a backend, scores would depend on whether torchvision happens to be installed.
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )
        net, report = AutoModelForImageClassification.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    return net.to(device).eval().requires_grad_(False), processor, sorted(report["missing_keys"])


def _try_out(attributes: Attributes, predictor: str) -> None:
    """Score one grey picture: what does not fit together shows here and not after an hour of sampling."""
    try:
        shape = list(attributes.score(torch.zeros(1, 3, 32, 32)).shape)
    except Exception as error:
        raise ModelError(f"predictor '{predictor}' cannot score an RGB picture: {first_line(error)}") from error
    labels = len(attributes.names)
    if shape != [1, labels]:
        raise ModelError(f"predictor '{predictor}' gives scores of shape {shape} for one picture and {labels} labels")
