"""Unshifted samples and their h, drawn once and kept for all who look at them."""
