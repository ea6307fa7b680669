"""Errors that the user's input causes. Each message is one sentence that tells the user what to change.

ValueError
  +-- UserError            a mistake that the caller can correct
        +-- ModelError     a model that is missing, incomplete or of a kind that cannot be used
              +-- AbsentModelError   one that is not on this machine, and cannot be fetched from here
        +-- DirectionSetError   a direction set that cannot be read, or does not fit the model
RuntimeError
  +-- NonFiniteError       NaN or infinite values in a loss, gradient, h, Jacobian or image; says where
"""


class UserError(ValueError):
    """A mistake of the caller. The message is one sentence: what is wrong, where, and what is allowed."""


class ModelError(UserError):
    """A model that cannot be loaded, or is not of a kind that has an h-space."""


class AbsentModelError(ModelError):
    """A model that is not available on this machine; another machine may have it."""


class DirectionSetError(UserError):
    """A direction set that cannot be read, written or applied."""


class NonFiniteError(RuntimeError):
    """NaN or infinite values in a loss, a gradient, h, a Jacobian or an image."""


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, or the exception's class name where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
