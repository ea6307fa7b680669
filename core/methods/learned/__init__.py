"""Directions that are learned: shift control, reconstructor and discriminator trained together through the chain."""

from core.methods.learned.training import Learner, Settings, find

__all__ = ["Learner", "Settings", "find"]
