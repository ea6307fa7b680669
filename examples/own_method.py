import torch

from core import Denoiser, DirectionSet, Schedule, noise
from core.chain.sampling import trajectory
from core.directions.provenance import provenance
from core.execution.lean import lean
from core.methods import random
from core.metrics import calibrate, evaluate
from core.randomness import REPORT_SEEDS
from core.samples.training import training_seeds

AREAS = {"top": (..., slice(0, 8), slice(None)), "left": (..., slice(None), slice(0, 8)), "all": (...,)}


def find(denoiser: Denoiser, schedule: Schedule, samples: int = 128, seed: int = 0) -> DirectionSet:
    """Directions by contrast: mean h of the samples that are brighter than most in an area, less that of the others."""
    seeds = training_seeds(samples, seed)
    images, h = trajectory(denoiser, schedule, noise(seeds, denoiser.sample_shape))  # h: [T, N, C, H, W]
    score = torch.stack([images[area].flatten(1).mean(dim=1) for area in AREAS.values()])  # [K, N]
    bright = score > score.median(dim=1, keepdim=True).values
    contrast = torch.stack([h[:, rows].mean(dim=1) - h[:, ~rows].mean(dim=1) for rows in bright])  # [K, T, C, H, W]
    length = contrast.flatten(2).norm(dim=2)  # [K, T]: what scale 1.0 means at each step
    origin = provenance("contrast", denoiser, schedule, {"samples": samples, "seed": seed})
    table = contrast / length[..., None, None, None]
    return DirectionSet(table, length, schedule.timesteps, names=tuple(AREAS), provenance=origin)


denoiser = lean(Denoiser.from_pretrained("mnist"))
schedule = Schedule.ddim(denoiser, steps=4)
baseline = random.find(denoiser, schedule, random.Settings(directions=len(AREAS)))
for name, directions in {"contrast": find(denoiser, schedule), "random": baseline}.items():
    equal = calibrate(denoiser, schedule, directions, strength=0.5)  # scale 1.0 of both moves images equally far
    measured = evaluate(denoiser, schedule, equal, REPORT_SEEDS[:12], REPORT_SEEDS[12:60])
    print(name, {metric: round(figure.value, 2) for metric, figure in measured.figures.items()})
    equal.save(name)
