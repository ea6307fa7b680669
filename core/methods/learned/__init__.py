"""The learned method: shift control, reconstructor and discriminator, trained together through the whole chain."""

from core.methods.learned.training import Learner, Settings, find
from core.methods.trained.chain_learner import Workers

__all__ = ["Learner", "Settings", "Workers", "find"]
