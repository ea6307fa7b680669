"""The T timesteps of a chain and the equations of a step: DDIM (Song et al., arXiv 2010.02502) for every prediction.

A state is x_t = a_t x_0 + s_t noise. Diffusion has a^2 + s^2 = 1 (a^2 is the cumulative alpha), flow matching
(rectified flow, Liu et al., arXiv 2209.03003) a + s = 1. x_t and a network's output imply the image and the noise:

    prediction    image P_t              noise E_t
    epsilon       (x_t - s output) / a   output
    v             a x_t - s output       a output + s x_t        Salimans & Ho, arXiv 2202.00512
    sample        output                 (x_t - a output) / s
    flow          x_t - s output         x_t + a output

A step is, with sigma_t = 0 where eta is 0,

    x_prev = a_prev P_t + sqrt(s_prev^2 - sigma_t^2) E_t + sigma_t z_t

which is DDIM's equation 12 for diffusion and Euler's step for a flow. Consistency models (LCM, Luo et al., arXiv
2310.04378) put fresh noise in place of E_t. Steps are indexed 0 .. T-1 in the order of sampling, from noise to image.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from core.errors import UserError, first_line
from core.model.denoiser import Denoiser
from core.model.schedulers import diffusion_levels

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")

_TINY = 1e-12
_ZERO = 1e-7  # of a cumulative alpha: Euler's schedulers put 2^-24 in place of zero signal
_SMALLEST_SLOPE = 0.1  # the smallest |p| that `inverse_step` divides by


@dataclass(frozen=True)
class Schedule:
    """The timesteps and coefficients of a chain of T steps. `eta` 0 is DDIM, 1 has DDPM's variance.

    signal, noise: a and s before each step and after the last, T + 1 values each.
    consistency: for each step of a consistency model, the weights of x_t and of P_t in its image; empty for others.
    """

    timesteps: tuple[float, ...]  # descending training timesteps
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    prediction: Prediction = "epsilon"
    eta: float = 0.0
    consistency: tuple[tuple[float, float], ...] = ()

    @classmethod
    def ddim(cls, denoiser: Denoiser, steps: int, eta: float = 0.0) -> "Schedule":
        """Return the model's own noise schedule at `steps` steps, spaced as its scheduler configuration says.

        Raises UserError for `steps` or an `eta` that the model cannot have.
        """
        total = int(denoiser.scheduler.config["num_train_timesteps"])
        if not 1 <= steps <= total:
            raise UserError(f"steps: got {steps}; a chain has 1 to {total} steps with model '{denoiser.name}'")
        if not 0 <= eta <= 1:
            raise UserError(f"eta: got {eta}; allowed: 0 (DDIM) to 1 (DDPM's variance)")
        kind = type(denoiser.scheduler).__name__
        if eta > 0 and kind in ("FlowMatchEulerDiscreteScheduler", "LCMScheduler"):
            what = "a flow" if kind.startswith("Flow") else "a consistency model"
            raise UserError(f"eta: got {eta}; model '{denoiser.name}' is {what}, whose steps have no eta: 0")
        if kind == "FlowMatchEulerDiscreteScheduler":
            return cls._flow(denoiser, steps)
        if kind == "LCMScheduler":
            return cls._consistency(denoiser, steps)
        return cls._diffusion(denoiser, steps, eta)

    @classmethod
    def _diffusion(cls, denoiser: Denoiser, steps: int, eta: float) -> "Schedule":
        scheduler = denoiser.scheduler
        try:
            timesteps, alpha = diffusion_levels(scheduler, steps)
        except Exception as error:  # what diffusers raises for steps that a scheduler cannot have is of many types
            raise UserError(
                f"steps: got {steps}; model '{denoiser.name}' has no such chain: {first_line(error)}"
            ) from error
        known = len(scheduler.alphas_cumprod)
        if timesteps[0] >= known:
            raise UserError(
                f"steps: got {steps}; the chain would begin at timestep {timesteps[0]}, and model '{denoiser.name}' "
                f"knows 0 to {known - 1}: take fewer steps"
            )
        if len(timesteps) < steps:
            raise UserError(
                f"steps: got {steps}; the {type(scheduler).__name__} of model '{denoiser.name}' has only "
                f"{len(timesteps)} timesteps for them: take fewer steps"
            )
        prediction: Prediction = scheduler.config["prediction_type"]
        if prediction == "epsilon" and alpha[0] <= (_ZERO if scheduler.config.get("rescale_betas_zero_snr") else _TINY):
            raise UserError(
                f"model '{denoiser.name}' predicts the noise and begins at zero signal (rescale_betas_zero_snr), "
                "where noise tells nothing of the image: such a schedule needs v_prediction or sample"
            )
        return cls(tuple(timesteps), *_variance_preserving(alpha), prediction, eta)

    @classmethod
    def _flow(cls, denoiser: Denoiser, steps: int) -> "Schedule":
        scheduler = denoiser.scheduler
        arguments: dict[str, Any] = {"num_inference_steps": steps}
        if denoiser.even_sigmas:
            arguments = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        if scheduler.config["use_dynamic_shifting"]:
            arguments["mu"] = _mu(scheduler.config, denoiser.tokens)
        scheduler.set_timesteps(**arguments)
        sigmas = scheduler.sigmas.double().tolist()
        return cls(tuple(scheduler.timesteps.tolist()), tuple(1 - s for s in sigmas), tuple(sigmas), "flow")

    @classmethod
    def _consistency(cls, denoiser: Denoiser, steps: int) -> "Schedule":
        scheduler = denoiser.scheduler
        most = int(scheduler.config["original_inference_steps"])
        if steps > most:
            raise UserError(f"steps: got {steps}; model '{denoiser.name}' is a consistency model of 1 to {most} steps")
        try:
            scheduler.set_timesteps(steps)
        except ValueError as error:
            raise UserError(f"steps: got {steps}; model '{denoiser.name}' has no such chain: {error}") from error
        timesteps = scheduler.timesteps.tolist()
        alphas = scheduler.alphas_cumprod.double().tolist()
        boundary = []
        for t in timesteps:
            skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
            boundary.append((float(skip), float(out)))
        prediction: Prediction = scheduler.config["prediction_type"]
        alpha = [*(alphas[t] for t in timesteps), 1.0]
        return cls(tuple(timesteps), *_variance_preserving(alpha), prediction, 0.0, tuple(boundary))

    def __len__(self) -> int:
        return len(self.timesteps)

    def __str__(self) -> str:
        return f"a chain with eta {self.eta}" if not self.consistency else "a chain of a consistency model"

    @property
    def stochastic(self) -> bool:
        """Return whether steps add noise, so that `step_noise` has to be given."""
        return self.eta > 0 or (len(self.consistency) > 1)

    def sigma(self, i: int) -> float:
        """Return the standard deviation of the noise that step i adds: DDIM's equation 16; s_prev for consistency."""
        if self.consistency:
            return self.noise[i + 1]
        if self.eta == 0:
            return 0.0
        share = 1 - (self.signal[i] / self.signal[i + 1]) ** 2
        return self.eta * self.noise[i + 1] / self.noise[i] * math.sqrt(max(share, 0.0))

    def predicted_x0(self, i: int, x_t: Tensor, output: Tensor) -> Tensor:
        """Return P_t, the image that x_t and the network's output imply."""
        a, s = self.signal[i], self.noise[i]
        match self.prediction:
            case "epsilon":
                image = (x_t - s * output) / a
            case "v_prediction":
                image = a * x_t - s * output
            case "sample":
                image = output
            case "flow":
                image = x_t - s * output
        if not self.consistency:
            return image
        skip, out = self.consistency[i]
        return out * image + skip * x_t

    def predicted_noise(self, i: int, x_t: Tensor, output: Tensor) -> Tensor:
        """Return E_t, the noise that x_t and the network's output imply."""
        a, s = self.signal[i], self.noise[i]
        match self.prediction:
            case "epsilon":
                return output
            case "v_prediction":
                return a * output + s * x_t
            case "sample":
                return (x_t - a * output) / s
            case "flow":
                return x_t + a * output

    def direction_to_xt(self, i: int, noise: Tensor) -> Tensor:
        """Return D_t, the predicted noise in the amount that x_prev keeps: sqrt(s_prev^2 - sigma_t^2) E_t."""
        return math.sqrt(max(self.noise[i + 1] ** 2 - self.sigma(i) ** 2, 0.0)) * noise

    def step(self, i: int, x_t: Tensor, output_p: Tensor, output_d: Tensor, z: Tensor | None = None) -> Tensor:
        """Return x_prev from x_t, with `output_p` for P_t and `output_d` for D_t; they differ for asymmetric injection.

        z: the noise to add, of unit variance.
        """
        image, noise = self.predicted_x0(i, x_t, output_p), self.predicted_noise(i, x_t, output_d)
        x_prev = self.signal[i + 1] * image + self.direction_to_xt(i, noise)
        return x_prev if z is None else x_prev + self.sigma(i) * z

    def inverse_step(self, i: int, x_prev: Tensor, x_t: Tensor, output: Tensor) -> Tensor:
        """Return the x_t from which step i leads to x_prev.

        x_t: a guess of the result; output: the network's output at that guess.
        A step without added noise is linear: x_prev = p x_t + q output. Where |p| is below 0.1 (the last step of a
        network that predicts the image), the result is composed of the image and the noise at the guess instead.
        """
        (p, q), a, s = self._linear(i), self.signal[i], self.noise[i]
        if abs(p) >= _SMALLEST_SLOPE:
            return (x_prev - q * output) / p
        noise = self.predicted_noise(i, x_t, output)
        return a * (x_prev - self.noise[i + 1] * noise) / self.signal[i + 1] + s * noise

    def _linear(self, i: int) -> tuple[float, float]:
        """Return (p, q) of x_prev = p x_t + q output."""
        a, s, a_prev, s_prev = self.signal[i], self.noise[i], self.signal[i + 1], self.noise[i + 1]
        match self.prediction:
            case "epsilon":
                return a_prev / a, s_prev - a_prev * s / a
            case "v_prediction":
                return a_prev * a + s_prev * s, s_prev * a - a_prev * s
            case "sample":
                return s_prev / s, a_prev - s_prev * a / s
            case "flow":
                return a_prev + s_prev, s_prev * a - a_prev * s

    def steps_in_window(self, window: tuple[int, int] | None) -> tuple[bool, ...]:
        """Return for each step whether it lies in a window [high, low] of training timesteps, both ends included.

        All steps do where `window` is None. Raises UserError where no step does.
        """
        if window is None:
            return (True,) * len(self)
        high, low = window
        chosen = tuple(low <= t <= high for t in self.timesteps)
        if not any(chosen):
            raise UserError(f"window [{high}, {low}] holds none of the chain's timesteps {list(self.timesteps)}")
        return chosen


def check_window(denoiser: Denoiser, window: tuple[int, int] | None) -> None:
    """Raise UserError for a window that begins above the model's training timesteps."""
    total = int(denoiser.scheduler.config["num_train_timesteps"])
    if window is not None and window[0] > total:
        raise UserError(
            f"window: got [{window[0]}, {window[1]}]; allowed: [high, low] with {total} >= high > low >= 0, for model "
            f"'{denoiser.name}' has {total} training timesteps"
        )


def level_at(denoiser: Denoiser, fraction: float) -> tuple[float, float]:
    """Return (training timestep, signal a) at this fraction of the model's training timesteps.

    A small fraction is a late level of the chain: little noise, all detail.
    """
    scheduler = denoiser.scheduler
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        return fraction * scheduler.config["num_train_timesteps"], 1 - fraction
    alphas = scheduler.alphas_cumprod.double().tolist()
    t = min(round(fraction * len(alphas)), len(alphas) - 1)
    return t, math.sqrt(alphas[t])


def _variance_preserving(alpha: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (a, s) of cumulative alphas."""
    return tuple(math.sqrt(a) for a in alpha), tuple(math.sqrt(max(1 - a, 0.0)) for a in alpha)


def _mu(config: Any, tokens: int) -> float:
    """Return how far a flow's timesteps are shifted for images of `tokens` tokens: linear between two sizes (Flux)."""
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    return float(config["base_shift"] + slope * (tokens - low))
