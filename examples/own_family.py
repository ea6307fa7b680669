import torch
from diffusers import DDIMScheduler
from torch import nn

from core import Denoiser, Schedule
from core.methods import pca
from core.model.cuts.hooked import HookedCut
from core.model.use import Use
from core.pictures.traversal_grid import traversal, traversal_grid


def load(dtype: torch.dtype = torch.float32, device: str = "cpu", use: Use = Use()) -> Denoiser:  # noqa: B008
    """What an entry point of the group h_space.models names: a network that no library knows, as a denoiser."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 48, 4, 4), nn.SiLU(), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU()),
        nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 48, 1)),
        nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(48, 3, 4, 4)),
    )
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)  # it predicts the image
    adam = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(200):  # a real one reads its weights here
        images = (torch.rand(16, 3, 1, 1) * 2 - 1).expand(-1, -1, 16, 16)  # of one colour each
        noisy = scheduler.add_noise(images, torch.randn(16, 3, 16, 16), torch.randint(1000, (16,)))
        adam.zero_grad()
        (network(noisy) - images).square().mean().backward()
        adam.step()
    network = network.to(device, dtype)
    cut = HookedCut(network, use.tap or "1", use.form, call=lambda network, x, t, inputs: network(x))
    return Denoiser(network, scheduler, "colours", cut=cut, use=use, sample_shape=(3, 16, 16))


if __name__ == "__main__":
    denoiser = load()
    schedule = Schedule.ddim(denoiser, steps=6)
    directions = pca.find(denoiser, schedule, pca.Settings(directions=3, samples=64))
    traversal_grid(traversal(denoiser, schedule, directions), directions).save("own-family.png")
    print(f"h is {denoiser.h_shape}; look at own-family.png")
