"""Open a predictor: named scores of images, from the model's own predictor, any image classifier, or CLIP.

Classifiers and CLIP models are those of `transformers` (core.predictors.image_model).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelError, UserError, first_line
from core.files import why_unreadable
from core.predictors import clip
from core.predictors.attributes import Attributes
from core.predictors.embedded import embedded_predictor, second_embedded_predictor
from core.predictors.image_model import REQUIRED, configuration, find_folder, read_model, refuse_lacking, refuse_pickles
from core.predictors.preprocessing import behind_processor
from core.quiet import quiet_transformers

_EXAMPLE = "image classifier such as google/vit-base-patch16-224"
_TOKENIZER = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "merges.txt", "special_tokens_map.json")
_CLIP = "CLIPModel"


def load(
    predictor: str | None,
    model: str,
    device: torch.device | str = "cpu",
    words: Mapping[str, tuple[str, str]] | None = None,
) -> Attributes | None:
    """Return a predictor on `device`; without a name the one that ships with `model`, or None where none does.

    predictor: a folder or hub id of an image-classification model, or of a CLIP model, whose attributes are `words`
    (core.predictors.clip.WORDS where None). Raises ModelError where it is missing, of another kind, or kept as pickles;
    UserError for words with a predictor that takes none.
    """
    folder = None if predictor is None else _folder_of(predictor)
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


def load_second(predictor: str | None, model: str, device: torch.device | str = "cpu") -> Attributes | None:
    """Return the predictor that only measures; without a name the second one that ships with `model`, or None.

    Sets that were found with one predictor are measured with another. Raises what `load` raises.
    """
    return second_embedded_predictor(model, device) if predictor is None else load(predictor, model, device)


def is_clip(predictor: str) -> bool:
    """Return whether the attributes of a predictor are words, as `load` decides it."""
    return _kind(_folder_of(predictor), predictor) == _CLIP


def _clip(folder: Path, predictor: str, words: Mapping[str, tuple[str, str]], device: torch.device | str) -> Attributes:
    try:
        with quiet_transformers():
            return clip.attributes(folder, words, device)
    except Exception as error:  # transformers has a dozen exception types; the user has one problem
        raise ModelError(
            f"predictor '{predictor}' cannot be read from {folder}: {why_unreadable(folder, error)}"
        ) from error


def classifier(folder: Path, predictor: str, device: torch.device | str = "cpu") -> Attributes:
    """Open an image classifier of `transformers`: images [N, 1 or 3, H, W] in [-1, 1] -> log-odds [N, A], one a label.

    Images go through the classifier's own preprocessing as 8-bit RGB, as its training images did. `score_through` does
    the same without rounding; None where core.predictors.preprocessing does not know the preprocessing. `log_odds` says
    what a score is.
    """
    try:
        net, processor, missing = read_model(folder, "AutoModelForImageClassification", device)
    except Exception as error:  # transformers has a dozen exception types; the user has one problem
        raise ModelError(
            f"predictor '{predictor}' cannot be read from {folder}: {why_unreadable(folder, error)}"
        ) from error
    if missing:
        raise ModelError(f"predictor '{predictor}' is not a trained classifier: its weights lack {', '.join(missing)}")
    names = unique_names([net.config.id2label[i] for i in range(net.config.num_labels)])

    def scores_of(**inputs: Tensor) -> Tensor:
        return log_odds(net(**inputs).logits, exclusive=_exclusive(net.config))

    return Attributes(names, *behind_processor(processor, scores_of, device))


def log_odds(logits: Tensor, exclusive: bool) -> Tensor:
    """Return log p - log(1 - p) of every label. logits: [N, A] -> [N, A], float64 where the labels exclude each other.

    exclusive: whether exactly one label is true of an image (softmax). A logit before a sigmoid is the log-odds. Before
    a softmax it is not: a constant added to all logits of an image changes no probability, so logits of different
    images cannot be compared. Probabilities could be, but near 0 and 1 the differences between the most extreme images
    are rounded away.
    """
    if not exclusive:
        return logits
    log_p = logits.double().log_softmax(dim=1)
    # 1 - p is exact for every label but the likeliest; the rest of that one is what the others add up to.
    likeliest = log_p.argmax(dim=1, keepdim=True)
    log_rest = torch.log(-torch.expm1(log_p.scatter(1, likeliest, -1.0)))  # -1: log(0) has no gradient
    others = log_p.scatter(1, likeliest, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_p - log_rest.scatter(1, likeliest, others)


def unique_names(labels: list[str]) -> tuple[str, ...]:
    """Return labels as names; those that occur more than once get their number (ImageNet has two cranes)."""
    count = Counter(labels)
    return tuple(label if count[label] == 1 else f"{label}_{i}" for i, label in enumerate(labels))


def _exclusive(config: Any) -> bool:
    """Return whether exactly one label is true of an image, by the rule of transformers' own pipeline."""
    return config.problem_type not in ("regression", "multi_label_classification") and config.num_labels > 1


def _folder_of(predictor: str) -> Path:
    return find_folder(predictor, f"predictor '{predictor}'", _EXAMPLE, _TOKENIZER)


def _kind(folder: Path, predictor: str) -> str:
    """Return the class of the model in a folder; an empty text where there is no configuration."""
    if not (folder / "config.json").is_file():
        return ""
    config = configuration(folder, f"predictor '{predictor}'")
    return str((config.get("architectures") or ["model of unknown kind"])[0])


def _refuse_other_kinds(folder: Path, predictor: str) -> None:
    """Raise ModelError for what the files alone show, before anything is loaded."""
    kind, label = _kind(folder, predictor), f"predictor '{predictor}'"
    refuse_lacking(folder, label, (*REQUIRED, _TOKENIZER[:2]) if kind == _CLIP else REQUIRED)
    if "ForImageClassification" not in kind and kind != _CLIP:
        raise ModelError(
            f"predictor '{predictor}' is a {kind}: a transformers image classifier or a CLIP model is needed"
        )
    refuse_pickles(folder, label)


def _try_out(attributes: Attributes, predictor: str) -> None:
    """Score one grey picture: what does not fit together shows here and not after an hour of sampling."""
    try:
        shape = list(attributes.score(torch.zeros(1, 3, 32, 32)).shape)
    except Exception as error:
        raise ModelError(f"predictor '{predictor}' cannot score an RGB picture: {first_line(error)}") from error
    labels = len(attributes.names)
    if shape != [1, labels]:
        raise ModelError(f"predictor '{predictor}' gives scores of shape {shape} for one picture and {labels} labels")
