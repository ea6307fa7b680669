"""How a trial tells of its progress and finds its last checkpoint, whoever runs it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    """What the trial's code needs of its surroundings."""

    def report(self, metrics: Mapping[str, Any], folder: Path) -> None:
        """Hand on metrics together with a folder that becomes the trial's checkpoint; may not return (early stop)."""

    def checkpoint(self) -> Any:
        """A context manager: the folder of the last checkpoint, or None at the first start."""


class TuneReporter:
    """A trial that runs in Tune's own process for it."""

    def report(self, metrics: Mapping[str, Any], folder: Path) -> None:
        from ray import tune

        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(str(folder)))

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        from ray import tune

        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)
