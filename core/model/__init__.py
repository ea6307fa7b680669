"""Open a pretrained diffusion model: from its name to a network that is cut at h."""
