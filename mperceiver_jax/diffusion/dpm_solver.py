"""DPM-Solver++ (2M) (Lu et al., 2022, arXiv 2211.01095): few steps, each extrapolating from the one before.

With signal a = sqrt(abar), spread s = sqrt(1 - abar) and half log-SNR l = ln(a / s), the exact solution
between two timesteps is linear in the latent and an integral of the clean estimate x0 over l. "2M" takes
x0 there as the straight line through the current estimate and the last one, so every step calls the
denoiser once:

    D  = x0 + (h / (2 h_last)) (x0 - x0_last)           h = l' - l, the width of a step
    x' = (s' / s) x + (a' - s' a / s) D

The first step has no estimate before it and takes D = x0; so does the last one where it ends on the clean
estimate (there l' is infinite) or where there are fewer than 15 steps, for which the extrapolation at the
end is known to be unstable.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mperceiver_jax.diffusion.samplers import Denoiser
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.shared_statistics import scan

# Below so many steps the last one is of first order (the authors' choice).
FEW = 15


@dataclass(frozen=True)
class DPMSolver:
    """A sampler: deterministic, of second order, made for 10 to 25 steps.

    Args:
        schedule: the schedule the denoiser was trained with.
        steps: number of calls of the denoiser.
        spacing: of their timesteps, from the last one down. `log_snr` spreads them evenly in l, to the nearest
            timesteps the denoiser was trained at, down to 0; with few steps that is far more precise than
            `time`, even in t with 0 left out (diffusers' default).
        final_alpha: what follows the last call: `one` (the latent becomes the clean estimate) or `abar0`.

    Raises:
        ValueError: a field out of range.
    """

    schedule: Schedule
    steps: int = 20
    spacing: Literal["log_snr", "time"] = "log_snr"
    final_alpha: Literal["one", "abar0"] = "one"

    def __post_init__(self):
        if self.spacing not in ("log_snr", "time"):
            raise ValueError(f"DPMSolver: spacing must be 'log_snr' or 'time', got {self.spacing!r}")
        if self.final_alpha not in ("one", "abar0"):
            raise ValueError(f"DPMSolver: final_alpha must be 'one' or 'abar0', got {self.final_alpha!r}")
        if not 1 <= self.steps < self.schedule.steps:
            raise ValueError(f"DPMSolver: steps must be 1..{self.schedule.steps - 1}, got {self.steps}")

    @property
    def name(self) -> str:
        return "dpmpp_2m"

    @cached_property
    def timesteps(self) -> np.ndarray:
        """Timesteps visited, ascending (sampling goes through them backwards); int32."""
        last = self.schedule.steps - 1
        if self.spacing == "time":
            return np.linspace(0, last, self.steps + 1).round()[1:].astype(np.int32)
        # l falls with t, steeply near 0, where several of many steps may fall on one timestep: they move up.
        falling = np.log(self.schedule.alphas_cumprod) - np.log(1 - self.schedule.alphas_cumprod)
        wanted = np.linspace(falling[-1], falling[0], self.steps)[::-1]
        nearest = np.abs(falling - wanted[:, None]).argmin(1)
        place = np.arange(self.steps)
        distinct = np.maximum.accumulate(nearest - place) + place
        return np.minimum(distinct, last - place[::-1]).astype(np.int32)

    @cached_property
    def coefficients(self) -> dict[str, np.ndarray]:
        """The factors of every step in the order of sampling, float64 (steps,).

        `signal`, `spread`: a and s at the timestep; `keep`: of x in x'; `gain`: of D in x';
        `slope`: of x0 - x0_last in D, 0 in steps of first order.
        """
        end = 1.0 if self.final_alpha == "one" else self.schedule.alphas_cumprod[0]
        alphas = np.append(self.schedule.alphas_cumprod[self.timesteps[::-1]], end)
        signal, spread = np.sqrt(alphas), np.sqrt(1 - alphas)
        with np.errstate(divide="ignore"):
            widths = np.diff(np.log(signal) - np.log(spread))
        slope = np.append(0.0, widths[1:] / (2 * widths[:-1]))
        if self.final_alpha == "one" or self.steps < FEW:
            slope[-1] = 0.0
        keep = spread[1:] / spread[:-1]
        return {
            "signal": signal[:-1],
            "spread": spread[:-1],
            "keep": keep,
            "gain": signal[1:] - keep * signal[:-1],
            "slope": slope,
        }

    def __call__(
        self, denoise: Denoiser, x_T: Float[Array, "b *rest"], key: jax.Array | None = None
    ) -> Float[Array, "b *rest"]:
        """Runs the whole sampler as one scan; the latent is float32 throughout.

        Args:
            denoise: `denoise(x, t) -> eps`, x float32 of x_T's shape, t int32 (b,). Traced once.
            x_T: starting latent, standard normal.
            key: not used; there for what other samplers draw.
        """

        def step(carry, row):
            x, before = carry
            eps = denoise(x, jnp.full((x.shape[0],), row["t"])).astype(jnp.float32)
            x0 = (x - row["spread"] * eps) / row["signal"]
            estimate = x0 + row["slope"] * (x0 - before)
            return (row["keep"] * x + row["gain"] * estimate, x0), None

        rows = {name: jnp.asarray(table, jnp.float32) for name, table in self.coefficients.items()}
        rows["t"] = jnp.asarray(self.timesteps[::-1])
        x = x_T.astype(jnp.float32)
        (x, _), _ = scan(step, (x, jnp.zeros_like(x)), rows)
        return x
