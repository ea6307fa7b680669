"""The gradient policies under their public name; core.chain.gradient has them."""

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps

__all__ = ["CheckpointBlocks", "CheckpointSteps", "FullGraph", "GradientPolicy", "KeepSteps"]
