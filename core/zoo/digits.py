"""Load scikit-learn's 1,797 handwritten digits at 16x16: the training data of the embedded model `digits`."""

import torch
from torch import Tensor

SIZE = 16
COUNT = 1797
TRAINED = 1500  # the remaining digits, in the order of seed 0, test the predictor
CLASSES = tuple(f"digit_{k}" for k in range(10))


def load(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` digits in random order: images [count, 1, 16, 16] in [-1, 1], classes [count]."""
    from sklearn.datasets import load_digits  # the data are needed only to make the model

    data = load_digits()
    order = torch.randperm(COUNT, generator=generator)[:count]
    images = torch.from_numpy(data.images).float()[:, None] / 16  # [1797, 1, 8, 8]
    images = torch.nn.functional.interpolate(images, size=SIZE, mode="bicubic", align_corners=False).clamp(0, 1)
    return images[order] * 2 - 1, torch.from_numpy(data.target)[order]
