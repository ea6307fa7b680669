from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from core import Denoiser, Schedule
from core.methods import pca
from core.model.cuts.unet import without_skips
from core.pictures.traversal_grid import traversal, traversal_grid

SWEEP = """\
name: own-model
model: own-model
sampler: {steps: 6}
search: {directions: {choice: [4, 8]}}
objectives: [{factor_score: max}]
"""

torch.manual_seed(0)
blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
unet = UNet2DModel(sample_size=16, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, **blocks)
scheduler = DDIMScheduler(beta_end=0.012)
cut, adam = Denoiser(unet, scheduler, "own-model"), torch.optim.Adam(unet.requires_grad_().parameters(), 3e-3)
for _ in range(400):
    images = (torch.rand(16, 3, 1, 1) * 2 - 1).repeat(1, 1, 16, 16)  # a square of one colour on another
    images[:, :, 4:12, 4:12] = torch.rand(16, 3, 1, 1) * 2 - 1
    noise, t = torch.randn_like(images), torch.randint(1000, (16,))
    features = without_skips(cut.encode(scheduler.add_noise(images, noise, t), t), dropped=torch.rand(16) < 0.5)
    loss = (cut.decode(features) - noise).square().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
DDIMPipeline(unet, scheduler).save_pretrained("own-model")  # unet/ and scheduler/, weights as safetensors
denoiser = Denoiser.from_pretrained("own-model")
schedule = Schedule.ddim(denoiser, steps=6)
directions = pca.find(denoiser, schedule, pca.Settings(directions=4, samples=64))
traversal_grid(traversal(denoiser, schedule, directions), directions).save("own-model.png")
Path("own-model.yaml").write_text(SWEEP)
print(f"loss {loss:.2f}; h is {denoiser.h_shape}; look at own-model.png, then: orchestrate plan own-model.yaml")
