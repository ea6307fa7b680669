"""Keep libraries' messages and progress bars off the user's screen while they load."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def quiet_diffusers() -> AbstractContextManager[None]:
    """Silence diffusers' remarks about optional packages, and its progress bars."""
    from diffusers.utils import logging

    return _quiet(logging)


def quiet_transformers() -> AbstractContextManager[None]:
    """Silence transformers' progress bars and remarks."""
    from transformers.utils import logging

    return _quiet(logging)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silence a library through its `logging` module; both libraries have the same functions there."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
