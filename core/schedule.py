"""The T timesteps of a DDIM chain and its two terms (Song et al., arXiv 2010.02502, equation 12).

    x_prev = sqrt(a_prev) P_t(x_t, eps) + D_t(eps) + sigma_t z_t

with a_t the cumulative alpha of the training schedule. Steps are indexed 0 .. T-1 in the order of sampling, from noise
to image.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from core.denoiser import Denoiser
from core.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Timesteps and coefficients of a chain of T steps. `eta` 0 is DDIM, 1 has DDPM's variance."""

    timesteps: tuple[int, ...]  # descending training timesteps
    alpha: tuple[float, ...]  # a_t at each step
    alpha_prev: tuple[float, ...]  # a at the step's end; the last is the model's final alpha
    eta: float = 0.0

    @classmethod
    def ddim(cls, denoiser: Denoiser, steps: int, eta: float = 0.0) -> "Schedule":
        """The model's own noise schedule at `steps` steps, spaced as its scheduler configuration says."""
        total = int(denoiser.scheduler.config["num_train_timesteps"])
        if not 1 <= steps <= total:
            raise UserError(f"steps: got {steps}; a chain has 1 to {total} steps with model '{denoiser.name}'")
        if not 0 <= eta <= 1:
            raise UserError(f"eta: got {eta}; allowed: 0 (DDIM) to 1 (DDPM's variance)")
        timesteps, alphas, final_alpha = denoiser.noise_levels(steps)
        alpha = [alphas[t] for t in timesteps]
        return cls(tuple(timesteps), tuple(alpha), (*alpha[1:], final_alpha), eta)

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, i: int) -> float:
        """Standard deviation of the noise added at step i (equation 16)."""
        a, a_prev = self.alpha[i], self.alpha_prev[i]
        return self.eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))

    def predicted_x0(self, i: int, x_t: Tensor, eps: Tensor) -> Tensor:
        """P_t: the image that x_t and eps imply."""
        a = self.alpha[i]
        return (x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)

    def direction_to_xt(self, i: int, eps: Tensor) -> Tensor:
        """D_t: the noise that is put back."""
        return math.sqrt(max(1 - self.alpha_prev[i] - self.sigma(i) ** 2, 0.0)) * eps

    def step(self, i: int, x_t: Tensor, eps_p: Tensor, eps_d: Tensor, z: Tensor | None = None) -> Tensor:
        """x_prev from x_t, with one eps for P_t and one for D_t (equal unless the injection is asymmetric)."""
        x_prev = math.sqrt(self.alpha_prev[i]) * self.predicted_x0(i, x_t, eps_p) + self.direction_to_xt(i, eps_d)
        return x_prev if z is None else x_prev + self.sigma(i) * z

    def inverse_step(self, i: int, x_prev: Tensor, eps: Tensor) -> Tensor:
        """x_t from x_prev, given the eps that led from one to the other (eta 0)."""
        a, a_prev = self.alpha[i], self.alpha_prev[i]
        x_0 = (x_prev - math.sqrt(1 - a_prev) * eps) / math.sqrt(a_prev)
        return math.sqrt(a) * x_0 + math.sqrt(1 - a) * eps

    def inside(self, window: tuple[int, int] | None) -> tuple[bool, ...]:
        """Which steps lie in a window [high, low] of training timesteps, both ends included; all where None."""
        if window is None:
            return (True,) * len(self)
        high, low = window
        chosen = tuple(low <= t <= high for t in self.timesteps)
        if not any(chosen):
            raise UserError(f"window [{high}, {low}] holds none of the chain's timesteps {list(self.timesteps)}")
        return chosen
