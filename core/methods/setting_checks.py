"""Refuse settings that several methods refuse alike."""

from typing import Any

from core.errors import UserError


def refuse_below(settings: Any, **least: int) -> None:
    """Raise UserError where a setting is below the least value that is given for its name."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise UserError(f"{name}: got {getattr(settings, name)}; allowed: {value} or more")


def refuse_few_samples(samples: int, directions: int, what: str) -> None:
    """Raise UserError where samples vary in fewer dimensions than there are directions. what: they are, in a word."""
    if samples <= directions:
        raise UserError(f"samples: got {samples}; {directions} {what} need at least {directions + 1} samples")


def refuse_no_length(sigmas: float) -> None:
    """Raise UserError where the length of a shift, in standard deviations, is not a number above 0."""
    if not 0 < sigmas < float("inf"):
        raise UserError(f"sigmas: got {sigmas}; allowed: a number above 0")
