"""The provenance of a direction set: the model, the chain and the settings by which it was found."""

from collections.abc import Mapping
from typing import Any

import torch

from core.chain.schedule import Schedule
from core.model.denoiser import Denoiser
from core.model.schedulers import sampler_of


def provenance(method: str, denoiser: Denoiser, schedule: Schedule, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of a set: enough to make the set again, and to refuse it on another model."""
    plain = {
        k: v if isinstance(v, bool | int | float | str | list | tuple | None) else repr(v) for k, v in settings.items()
    }
    return {
        "method": method,
        "model": denoiser.name,
        "weight_digest": denoiser.digest,
        "steps": len(schedule),
        "eta": schedule.eta,
        "tap": denoiser.cut.module(),
        "form": denoiser.cut.tap.form,
        **({} if denoiser.cut.tap.output is None else {"output": denoiser.cut.tap.output}),
        **({"clock": list(denoiser.cut.clock)} if denoiser.cut.clock else {}),
        "use": denoiser.use.to_json(),
        "told": sorted(denoiser.condition.given),
        "sample_shape": list(denoiser.sample_shape),
        "network": type(denoiser.network).__name__,
        "sampler": sampler_of(denoiser.scheduler),
        **({"codec": denoiser.codec.kind, "scaling_factor": denoiser.codec.scaling} if denoiser.codec else {}),
        "settings": plain,
        "torch": torch.__version__,
    }
