import torch

from core import Denoiser, Schedule
from core.execution.lean import lean
from core.methods import pca, random
from core.metrics import Traversals, draw_traversals
from core.metrics.bootstrap import Figure, of_mean
from core.randomness import REPORT_SEEDS

WIDTH = 3  # of the border, in pixels


def border_share(traversals: Traversals) -> Figure:
    """How much of a change falls on the border: 1 where it changes like the whole image, 0 where it stays as it was."""
    change = (traversals.shifted - traversals.plain[:, None, None]).abs().mean(dim=(2, 3))  # [M, K, H, W]
    border = torch.ones(change.shape[-2:], dtype=torch.bool)
    border[WIDTH:-WIDTH, WIDTH:-WIDTH] = False
    return of_mean(change[..., border].mean(dim=2) / change.mean(dim=(2, 3)).clamp(min=1e-12))


denoiser = lean(Denoiser.from_pretrained("toyfaces"))
schedule = Schedule.ddim(denoiser, steps=4)
sets = {
    "pca": pca.find(denoiser, schedule, pca.Settings(directions=4, samples=64)),
    "random": random.find(denoiser, schedule, random.Settings(directions=4)),
}
for name, directions in sets.items():
    traversals = draw_traversals(denoiser, schedule, directions, seeds=REPORT_SEEDS[:8])
    share = border_share(traversals)
    low, high = share.interval
    print(f"{name}: border share {share.value:.2f} [{low:.2f}, {high:.2f}]")
