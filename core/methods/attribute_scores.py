"""What methods that find attributes share: their predictor, the scores of samples, the refusal of useless scores."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from core.errors import UserError
from core.model.denoiser import Denoiser
from core.predictors import classifier
from core.predictors.attributes import Attributes


def predictor_of(
    attributes: Attributes | None, predictor: str | None, denoiser: Denoiser, otherwise: str = ""
) -> Attributes:
    """Return `attributes`, or else the named predictor, or else the model's own.

    Raises UserError where the model has none. otherwise: ends the sentence with what may be given instead.
    """
    found = attributes or classifier.load(predictor, denoiser.name, denoiser.device)
    if found is None:
        raise UserError(
            f"predictor: model '{denoiser.name}' has none of its own; give a folder or hub id of an image "
            f"classifier{otherwise}"
        )
    return found


@torch.no_grad()
def scores_of(score: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Return the scores [N, A] of the images of all batches; float64, on the CPU."""
    return torch.cat([score(images).double().cpu() for images in batches])


def refuse_useless_scores(score: Tensor, name: str, may_be_constant: bool = False) -> None:
    """Raise UserError where the scores [N] of an attribute are not finite, or, unless they may be, are all the same."""
    if not torch.isfinite(score).all():
        raise UserError(f"attribute '{name}': the predictor gives scores that are NaN or infinite")
    if not may_be_constant and score.min() == score.max():
        raise UserError(f"attribute '{name}' does not vary: the predictor scores all {len(score)} samples alike")


def refuse_repeated(names: tuple[str, ...]) -> None:
    """Raise UserError where an attribute is named twice."""
    if len(set(names)) != len(names):
        raise UserError(f"attributes: got {', '.join(names)}; each may be given once")
