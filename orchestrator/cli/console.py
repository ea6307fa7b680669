"""The console that verbs print to: as wide as its terminal, and silent once nobody reads it any more."""

import os
from typing import TextIO

import rich.console

_PIPED_WIDTH = 160  # columns of the output where it does not go to a terminal


class Console(rich.console.Console):
    """A rich console for one output."""

    def __init__(self, file: TextIO) -> None:
        # No markup: errors and folder names may contain brackets.
        super().__init__(file=file, markup=False, width=None if file.isatty() else _PIPED_WIDTH)

    def on_broken_pipe(self) -> None:
        """Go on without output, where rich would end the process: a sweep takes hours, its reader may be `head`."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
