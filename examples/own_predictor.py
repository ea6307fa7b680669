import torch
from torch import Tensor

from core import Denoiser, Schedule
from core.execution.lean import lean
from core.methods import guided, supervised
from core.metrics import calibrate, draw_traversals
from core.predictors.attributes import Attributes
from core.randomness import REPORT_SEEDS

NAMES = ("bright", "warm", "light above")


def score(images: Tensor) -> Tensor:
    """Three numbers of an image [N, 3, H, W] in [-1, 1]: anything that torch can differentiate."""
    bright, warm = images.mean(dim=(1, 2, 3)), (images[:, 0] - images[:, 2]).mean(dim=(1, 2))
    above, below = (half.mean(dim=(1, 2, 3)) for half in images.chunk(2, dim=2))
    return torch.stack([bright, warm, above - below], dim=1)


predictor = Attributes.of(NAMES, score)
denoiser = lean(Denoiser.from_pretrained("toyfaces"))
schedule = Schedule.ddim(denoiser, steps=4)
means, trained = supervised.Settings(samples=256, extremes=25), guided.Settings(pool=256, iterations=40)
sets = {
    "supervised": supervised.find(denoiser, schedule, means, predictor),
    "guided": guided.find(denoiser, schedule, trained, predictor),
}
for name, directions in sets.items():
    equal = calibrate(denoiser, schedule, directions, strength=0.5)
    drawn = draw_traversals(denoiser, schedule, equal, seeds=REPORT_SEEDS[:16])
    ends = [predictor.score(drawn.shifted[:, :, end].flatten(0, 1)).unflatten(0, (16, -1)) for end in (-1, 0)]
    effect = ((ends[0] - ends[1]) / predictor.score(drawn.plain).std(dim=0)).mean(dim=0)  # [directions, attributes]
    share = effect.diagonal() / effect.abs().sum(dim=1)
    print(name, {attribute: round(float(each), 2) for attribute, each in zip(NAMES, share, strict=True)})
