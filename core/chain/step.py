"""One step of the sampling chain with a shift of h, by the equations of the papers.

There are two injections of a shift delta_h. eps~ is the shifted prediction, eps the plain one:

    symmetric    x_prev = sqrt(a_prev) P_t(eps~) + D_t(eps~)     Haas et al., arXiv 2303.11073; one decoder pass
    asymmetric   x_prev = sqrt(a_prev) P_t(eps~) + D_t(eps)      Kwon et al., arXiv 2210.10960; two decoder passes,
                                                                  one encoder pass

Where a network predicts something else than the noise, P_t and D_t are computed from the image and the noise that its
output implies (core.chain.schedule).
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
    """Run step i of the chain and return x_prev [N, *sample_shape].

    x_t and the schedule's arithmetic keep x_t's precision, whatever the precision of the network is.
    """
    features = denoiser.encode(x_t, schedule.timesteps[i])
    output = denoiser.decode(features, delta_h).to(x_t.dtype)
    if delta_h is None or injection == "symmetric":
        return schedule.step(i, x_t, output, output, z)
    plain = denoiser.decode(features).to(x_t.dtype)
    return schedule.step(i, x_t, output, plain, z)
