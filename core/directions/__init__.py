"""Sets of editing directions: the object, its files, its dials, and its use in any diffusers pipeline."""
