"""The learned method: shift control, reconstructor and discriminator, trained together through the whole chain."""

from core.methods.learned.chain_learner import Workers
from core.methods.learned.training import Learner, Settings, find

__all__ = ["Learner", "Settings", "Workers", "find"]
