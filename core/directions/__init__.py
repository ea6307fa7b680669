"""The product: a set of editing directions, its file, its dials, and how it is applied in any diffusers pipeline."""
