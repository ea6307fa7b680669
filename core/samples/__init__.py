"""Unshifted samples and their h: drawn once, cached on disk, and shared by methods and metrics."""
