"""Make the champion a model that MLflow loads: rows of seed, direction and scale in, images out.

`mlflow.pyfunc.load_model("models:/NAME@champion")` calls `_load_pyfunc`. The model's folder holds the bundle and this
module's name, so nothing is pickled. Loading needs this package, and the diffusion model at the place that
`model_config` names. `model_config` also says the precision of the model (`precision`) and where its weights are kept
(`weights`, "device" or "cpu"): as in the sweep, unless `load_model` is given other values.
"""

import math
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from core.directions.direction_set import DirectionSet
from core.errors import DirectionSetError, ModelError, UserError
from core.files import atomic_folder
from core.model.catalogue import origin_of
from core.precision import use_precision
from orchestrator.spec import Sweep

if TYPE_CHECKING:
    from core.chain.sampling import Shift
    from core.chain.schedule import Schedule

PACKAGE = "h-space-orchestrator"
_BATCH = 16  # samples drawn at a time; fewer where memory does not suffice
_LESS = ("model_config={'weights': 'cpu'}", "model_config={'precision': 'bf16'}")  # ways to save a device's memory


def save(bundle: Path, sweep: Sweep, to: Path, made_ms: int, run_id: str, identity: str) -> None:
    """Write the model's folder, replacing an old one. The same arguments give the same folder.

    made_ms: the time to store, in milliseconds; identity: the id to store for the model.
    """
    shutil.rmtree(to, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary, atomic_folder(to) as folder:
        data = Path(temporary) / "bundle"
        shutil.copytree(bundle, data, ignore=shutil.ignore_patterns("*.html"))  # large, and not needed for loading
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow warns of its own type hints when it is imported
            _write(data, sweep, folder, datetime.fromtimestamp(made_ms / 1000, UTC), run_id, identity)


def _write(data: Path, sweep: Sweep, to: Path, created: datetime, run_id: str, identity: str) -> None:
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    directions, sampler = DirectionSet.load(data), sweep.sampler
    direction = ColSpec(AnyType(), "direction")  # type: ignore[no-untyped-call]  # an untyped class of MLflow
    rows = Schema([ColSpec("long", "seed"), direction, ColSpec("double", "scale", required=False)])
    images = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3), "images")
    steps = ParamSpec("steps", "long", sampler.steps)
    pyfunc.save_model(
        to,
        loader_module="orchestrator.pyfunc",
        data_path=str(data),
        model_config={
            "model": _from_anywhere(sweep.model),
            "precision": sweep.train.precision,
            "weights": "device" if sweep.gradient.weights == "device" else "cpu",
            "eta": sampler.eta,
            "injection": sampler.injection,
            "window": sampler.window and list(sampler.window),
        },
        signature=ModelSignature(rows, Schema([images]), ParamSchema([steps])),
        input_example=pd.DataFrame({"seed": [0, 0], "direction": [directions.names[0]] * 2, "scale": [-1.0, 1.0]}),
        pip_requirements=[f"{name}=={version(name)}" for name in (PACKAGE, "mlflow", "torch", "diffusers")],
        mlflow_model=Model(utc_time_created=str(created.replace(tzinfo=None)), model_uuid=identity, run_id=run_id),
    )


def _from_anywhere(model: str) -> str:
    """Return a model's name; the absolute path where the model is a folder or a file."""
    local = origin_of(model) in ("folder", "file")
    return str(Path(model).expanduser().resolve()) if local else model


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> "Editor":
    """Load the model for MLflow. Raises UserError, in one sentence, where the diffusion model is missing or wrong."""
    return Editor(DirectionSet.load(path), model_config)


class Editor:
    """A direction set with its model loaded."""

    def __init__(self, directions: DirectionSet, config: Mapping[str, Any]) -> None:
        from core.model.use import Use
        from orchestrator.trial.loading import advice_on_memory, own_device, placed

        self.precision = config.get("precision", "fp32")  # models saved by older versions do not name it
        device, weights = own_device(), config.get("weights", "device")
        use = Use.of(directions.provenance.get("use", {})).to_json()
        with advice_on_memory(*_LESS):
            try:
                self.denoiser = placed(config["model"], device, self.precision, weights, use)
            except ModelError as error:
                message = f"{error}; or give load_model the place as model_config={{'model': ...}}"
                raise ModelError(message) from error.__cause__
        wanted = directions.provenance.get("weight_digest")
        if wanted != self.denoiser.digest:
            raise UserError(
                f"model '{config['model']}' has other weights ({self.denoiser.digest[:16]}) than those that the "
                f"directions were found in ({str(wanted)[:16]}); give load_model the place of the right ones as "
                "model_config={'model': ...}"
            )
        self.directions, self.config = directions.to(device), config

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> np.ndarray[Any, Any]:
        """Return images [N, H, W, 3], 0 to 255, one for each row; PIL.Image.fromarray makes a picture of each.

        rows: a data frame, or a mapping of lists: seed, direction (name or number), scale (1.0 where it is missing).
        params: steps, of the chain (those of the set where it is missing).
        Raises UserError, in one sentence, where a row names no direction of the set, or a scale is no finite number.
        """
        from core.chain.schedule import Schedule
        from core.pictures.channels import shown_shape
        from orchestrator.trial.attempt import halving_batch
        from orchestrator.trial.loading import advice_on_memory

        table = pd.DataFrame(rows)
        seeds = [int(seed) for seed in table["seed"]]
        numbers = [self._number(each) for each in table["direction"]]
        scales = [_scale(each) for each in (table["scale"] if "scale" in table else [1.0] * len(seeds))]
        steps = int((params or {}).get("steps") or len(self.directions.timesteps))
        schedule = Schedule.ddim(self.denoiser, steps, float(self.config["eta"]))
        use_precision(self.precision)  # the switches are global to the process, and another model may have set them

        def draw(batch: int) -> list[np.ndarray[Any, Any]]:
            cuts = [slice(start, start + batch) for start in range(0, len(seeds), batch)]
            return [self._draw(schedule, seeds[cut], numbers[cut], scales[cut]) for cut in cuts]

        with advice_on_memory(*_LESS):
            parts = halving_batch(draw, _BATCH)
        empty = np.empty((0, *shown_shape(self.denoiser.image_shape)[1:], 3), np.uint8)
        return np.concatenate(parts) if parts else empty

    def _draw(
        self, schedule: "Schedule", seeds: Sequence[int], numbers: Sequence[int], scales: Sequence[float]
    ) -> np.ndarray[Any, Any]:
        import torch

        from core.chain.sampling import sample, start_of
        from core.pictures.traversal_grid import to_picture

        device = self.denoiser.device
        denoiser, x_T, z = start_of(self.denoiser, schedule, seeds)
        shift = self._shift(schedule, torch.tensor(numbers, device=device), torch.tensor(scales, device=device))
        window = self.config["window"] and tuple(self.config["window"])
        with torch.no_grad():
            x_0 = sample(denoiser, schedule, x_T, shift, self.config["injection"], window=window, step_noise=z)
            drawn = denoiser.images(x_0)
        return np.stack([np.asarray(to_picture(image)) for image in drawn])

    def _shift(self, schedule: "Schedule", numbers: Any, scales: Any) -> "Shift":
        """Return the set's shift on a chain of any number of steps, as `DirectionSet.applied` does."""
        own = self.directions.timesteps
        shift = self.directions.shift(numbers, scales * (len(own) / len(schedule)))
        nearest = [min(range(len(own)), key=lambda i: abs(own[i] - t)) for t in schedule.timesteps]
        return lambda i: shift(nearest[i])

    def _number(self, direction: Any) -> int:
        """Return the number of a direction that a table holds as a name or as any kind of number."""
        if isinstance(direction, str):
            named = direction in self.directions.names or not direction.strip().isdigit()
            return self.directions.index(direction if named else int(direction))
        if isinstance(direction, bool | np.bool_) or not isinstance(direction, int | float | np.number):
            raise DirectionSetError(f"direction: got {direction!r}; allowed: a name or a number")
        if not float(direction).is_integer():
            raise DirectionSetError(f"direction: got {direction}; allowed: a name or a whole number")
        return self.directions.index(int(direction))


def _scale(value: Any) -> float:
    scale = float(cast(float, value))
    if not math.isfinite(scale):
        raise UserError(f"scale: got {scale}; allowed: a finite number")
    return scale
