"""The noise schedule of the Stable Diffusion family: its tables, forward diffusion and velocity.

Tables are float64 numpy arrays, computed once per schedule; what enters a jitted
function is their float32 rounding.
"""

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array


@dataclass(frozen=True)
class Schedule:
    """Discrete diffusion with betas linear in sqrt(beta) ("scaled linear").

    Args:
        steps: number of training timesteps; t runs from 0 to `steps - 1`.
        beta_start: noise variance added at t = 0.
        beta_end: noise variance added at the last t.

    Raises:
        ValueError: no steps, or betas outside 0 < beta_start <= beta_end < 1.
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"Schedule: steps must be at least 1, got {self.steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"Schedule: needs 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}"
            )

    @cached_property
    def betas(self) -> np.ndarray:
        """(steps,) float64."""
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=np.float64) ** 2

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """abar_t = prod_{s <= t} (1 - beta_s), the share of signal variance left at t; (steps,) float64."""
        return np.cumprod(1.0 - self.betas)

    def add_noise(
        self, z: Float[Array, "b *rest"], noise: Float[Array, "b *rest"], t: Int[Array, "b"]
    ) -> Float[Array, "b *rest"]:
        """Forward diffusion, sqrt(abar_t) z + sqrt(1 - abar_t) noise, in float32; returns z's dtype.

        Args:
            t: timestep of every example, 0 .. steps - 1.
        """
        signal, spread = self._scales(t, z.ndim)
        return (signal * z.astype(jnp.float32) + spread * noise.astype(jnp.float32)).astype(z.dtype)

    def velocity(
        self, z: Float[Array, "b *rest"], noise: Float[Array, "b *rest"], t: Int[Array, "b"]
    ) -> Float[Array, "b *rest"]:
        """The target of v-prediction (Salimans and Ho, 2022): sqrt(abar_t) noise - sqrt(1 - abar_t) z."""
        signal, spread = self._scales(t, z.ndim)
        return (signal * noise.astype(jnp.float32) - spread * z.astype(jnp.float32)).astype(z.dtype)

    def noise_of_velocity(
        self, z_t: Float[Array, "b *rest"], v: Float[Array, "b *rest"], t: Int[Array, "b"]
    ) -> Float[Array, "b *rest"]:
        """The noise that `z_t` and a predicted velocity imply."""
        signal, spread = self._scales(t, z_t.ndim)
        return (signal * v.astype(jnp.float32) + spread * z_t.astype(jnp.float32)).astype(z_t.dtype)

    def _scales(self, t: Array, ndim: int) -> tuple[Array, Array]:
        scales = np.stack([np.sqrt(self.alphas_cumprod), np.sqrt(1.0 - self.alphas_cumprod)])
        signal, spread = jnp.asarray(scales, jnp.float32)[:, t].reshape(2, -1, *[1] * (ndim - 1))
        return signal, spread
