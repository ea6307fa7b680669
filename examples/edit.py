import torch
from diffusers import DDIMPipeline
from PIL import Image

from core import DirectionSet
from core.zoo import model_folder

directions = DirectionSet.load("out")  # what `orchestrate export toyfaces --to out` wrote
pipeline = DDIMPipeline.from_pretrained(model_folder("toyfaces"))  # any diffusers pipeline with a UNet
pipeline.set_progress_bar_config(disable=True)
strip = Image.new("RGB", (5 * 96, 4 * 96))
best = sorted(range(len(directions)), key=lambda k: -directions.dials[k].score)[:4]
for row, direction in enumerate(best):
    for column, scale in enumerate((-1.5, -0.75, 0.0, 0.75, 1.5)):
        with directions.applied(pipeline.unet, direction, scale):
            image = pipeline(num_inference_steps=6, generator=torch.Generator().manual_seed(7)).images[0]
        strip.paste(image.resize((96, 96), Image.Resampling.NEAREST), (column * 96, row * 96))
strip.save("edits.png")
