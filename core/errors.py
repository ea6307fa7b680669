"""What can go wrong because of what the user gave. Each message is one sentence a person can act on.

ValueError
  +-- UserError            anything the caller can put right
        +-- ModelError     a model that is missing, incomplete or of a kind that cannot be used
              +-- AbsentModelError   one that is not on this machine, and cannot be fetched from here
        +-- DirectionSetError   a direction set that cannot be read, or does not fit the model
RuntimeError
  +-- NonFiniteError       a loss or gradient that is NaN or infinite; names the term and the iteration
"""


class UserError(ValueError):
    """A mistake of the caller, told in one sentence: what, where, what is allowed."""


class ModelError(UserError):
    """The model cannot be loaded or is not of a kind that has an h-space."""


class AbsentModelError(ModelError):
    """The model is not at hand here; elsewhere it may be."""


class DirectionSetError(UserError):
    """The direction set cannot be read, written or applied."""


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite."""


def first_line(error: Exception) -> str:
    """What an exception of a library says, for a sentence of ours; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
