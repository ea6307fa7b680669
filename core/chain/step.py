"""One step of the sampling chain, as the papers write it.

Two injections of a shift delta_h (with eps~ the shifted and eps the plain prediction):

    symmetric    x_prev = sqrt(a_prev) P_t(eps~) + D_t(eps~)     Haas et al., arXiv 2303.11073; one decoder pass
    asymmetric   x_prev = sqrt(a_prev) P_t(eps~) + D_t(eps)      Kwon et al., arXiv 2210.10960; two decoder passes,
                                                                  one encoder pass

Where a network predicts something else than the noise, its two predictions stand for the image and the noise that they
imply (core.chain.schedule).
"""

from typing import Literal

from torch import Tensor

from core.chain.schedule import Schedule
from core.model.denoiser import Denoiser

Injection = Literal["symmetric", "asymmetric"]
INJECTIONS = ("symmetric", "asymmetric")


def one_step(
    denoiser: Denoiser,
    schedule: Schedule,
    i: int,
    x_t: Tensor,
    delta_h: Tensor | None,
    injection: Injection,
    z: Tensor | None = None,
) -> Tensor:
    """Step i of the chain. x_t and the schedule's arithmetic keep x_t's precision, whatever the network's is."""
    features = denoiser.encode(x_t, schedule.timesteps[i])
    output = denoiser.decode(features, delta_h).to(x_t.dtype)
    if delta_h is None or injection == "symmetric":
        return schedule.step(i, x_t, output, output, z)
    plain = denoiser.decode(features).to(x_t.dtype)
    return schedule.step(i, x_t, output, plain, z)
