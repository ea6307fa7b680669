"""Tell a listener how far a long computation has come, without passing it through every call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# (what is counted, how many are done, how many there will be)
Listener = Callable[[str, int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with the progress of what is computed in the block, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def advanced(what: str, done: int, total: int) -> None:
    """Tell the listener, where there is one, that `done` of `total` are done, such as 64 of 512 "samples"."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
