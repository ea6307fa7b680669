"""The guided method: named attributes of a differentiable predictor, pursued through the whole chain."""

from core.methods.guided.training import Learner, Settings, find, refuse_undifferentiable

__all__ = ["Learner", "Settings", "find", "refuse_undifferentiable"]
