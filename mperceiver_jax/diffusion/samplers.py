"""DDIM (Song et al., 2021) as a table of coefficients and one scan.

With c = schedule.steps // steps and abar the cumulative alphas, every step does

    x0 = (x - sqrt(1 - a) eps) / sqrt(a)
    x' = sqrt(a_prev) x0 + sqrt(1 - a_prev - sigma^2) eps + sigma noise

without clipping. The two modes differ in which timesteps they visit and how they end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.shared_statistics import scan

Denoiser = Callable[[Float[Array, "b *rest"], Int[Array, "b"]], Float[Array, "b *rest"]]


@dataclass(frozen=True)
class DDIM:
    """A sampler: which timesteps, and how far each step goes.

    Args:
        schedule: the schedule the denoiser was trained with.
        steps: number of calls of the denoiser; in mode `reference` it sets the stride and the calls can be more.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling.
        mode: `ddim` visits 1, 1 + c, 1 + 2c, ... and ends on the clean estimate.
            `reference` reproduces the public release of MPerceiver, which visits its whole table: 0, c, 2c, ... below
            `schedule.steps`. That is one timestep or more beyond `steps` where `steps` does not divide the
            schedule's: 31 (0 to 990) for 30 steps of 1000. Its last step has a = a_prev, so with eta 0 it returns the
            latent unchanged and one call is wasted.
        final_alpha: what follows the last timestep in mode `ddim`: `one` (the latent becomes the
            clean estimate) or `abar0` (the stock Stable Diffusion setting). Mode `reference` always
            ends on abar0.
        start: visit only this many of the lowest timesteps, for starting from a partly noised
            latent; all of them when None.

    Raises:
        ValueError: a field out of range.
    """

    schedule: Schedule
    steps: int = 50
    eta: float = 0.0
    mode: Literal["ddim", "reference"] = "ddim"
    final_alpha: Literal["one", "abar0"] = "one"
    start: int | None = None

    def __post_init__(self):
        if self.mode not in ("ddim", "reference"):
            raise ValueError(f"DDIM: mode must be 'ddim' or 'reference', got {self.mode!r}")
        if self.final_alpha not in ("one", "abar0"):
            raise ValueError(f"DDIM: final_alpha must be 'one' or 'abar0', got {self.final_alpha!r}")
        # In mode ddim the timesteps start at 1, so the very last one is missing.
        most = self.schedule.steps - (self.mode == "ddim")
        if not 1 <= self.steps <= most:
            raise ValueError(f"DDIM: steps must be 1..{most} in mode {self.mode!r}, got {self.steps}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM: eta must be in [0, 1], got {self.eta}")
        if self.start is not None and not 1 <= self.start <= len(self._table):
            raise ValueError(f"DDIM: start must be 1..{len(self._table)} (timesteps), got {self.start}")

    @property
    def name(self) -> str:
        return self.mode

    def __call__(
        self, denoise: Denoiser, x_T: Float[Array, "b *rest"], key: jax.Array | None = None
    ) -> Float[Array, "b *rest"]:
        """The sampled latent; see `sample`."""
        return sample(self, denoise, x_T, key)

    @cached_property
    def timesteps(self) -> np.ndarray:
        """Timesteps visited, ascending (sampling goes through them backwards); int32."""
        return self._table[: self.start]

    @cached_property
    def _table(self) -> np.ndarray:
        stride = self.schedule.steps // self.steps
        if self.mode == "reference":
            return np.arange(0, self.schedule.steps, stride, dtype=np.int32)
        return 1 + stride * np.arange(self.steps, dtype=np.int32)

    @cached_property
    def alphas(self) -> np.ndarray:
        """abar at `timesteps`, float64."""
        return self.schedule.alphas_cumprod[self.timesteps]

    @cached_property
    def alphas_prev(self) -> np.ndarray:
        """abar that the step from each of `timesteps` arrives at, float64."""
        ends_clean = self.mode == "ddim" and self.final_alpha == "one"
        return np.append(1.0 if ends_clean else self.schedule.alphas_cumprod[0], self.alphas[:-1])

    @cached_property
    def sigmas(self) -> np.ndarray:
        """Standard deviation of the fresh noise of each step, float64; zeros for eta 0."""
        a, a_prev = self.alphas, self.alphas_prev
        # Stepping from t = 1 to abar0 or from abar0 to itself can leave -1e-17 by rounding.
        return self.eta * np.sqrt(np.maximum((1 - a_prev) / (1 - a) * (1 - a / a_prev), 0.0))


@overload
def sample(
    sampler: DDIM,
    denoise: Denoiser,
    x_T: Float[Array, "b *rest"],
    key: jax.Array | None = None,
    return_trajectory: Literal[False] = False,
) -> Array: ...


@overload
def sample(
    sampler: DDIM,
    denoise: Denoiser,
    x_T: Float[Array, "b *rest"],
    key: jax.Array | None = None,
    *,
    return_trajectory: Literal[True],
) -> tuple[Array, dict[str, Array]]: ...


def sample(
    sampler: DDIM,
    denoise: Denoiser,
    x_T: Float[Array, "b *rest"],
    key: jax.Array | None = None,
    return_trajectory: bool = False,
) -> Array | tuple[Array, dict[str, Array]]:
    """Runs the whole sampler as one scan; the latent is float32 throughout.

    Args:
        denoise: `denoise(x, t) -> eps`, x float32 of x_T's shape, t int32 (b,). Anything else it
            needs (parameters, condition) it closes over. Traced once.
        x_T: starting latent, standard normal (or partly noised for `sampler.start`).
        key: random key for the fresh noise; needed when eta > 0, unused otherwise.
        return_trajectory: also return {'x': latents after every step, 'x0': clean estimates},
            each (steps, b, ...) in the order of sampling.

    Raises:
        ValueError: eta > 0 without a key.
    """
    if sampler.eta > 0 and key is None:
        raise ValueError(f"sample: eta = {sampler.eta} draws noise at every step and needs a key")
    a, a_prev, sigma = sampler.alphas, sampler.alphas_prev, sampler.sigmas

    def single(table):
        return jnp.asarray(table[::-1], jnp.float32)

    rows = {
        "t": jnp.asarray(sampler.timesteps[::-1]),
        "signal": single(np.sqrt(a)),
        "spread": single(np.sqrt(1 - a)),
        "signal_prev": single(np.sqrt(a_prev)),
        "direction": single(np.sqrt(np.maximum(1 - a_prev - sigma**2, 0.0))),
        "sigma": single(sigma),
    }

    def step(x, row):
        t = jnp.full((x.shape[0],), row["t"])
        eps = denoise(x, t).astype(jnp.float32)
        x0 = (x - row["spread"] * eps) / row["signal"]
        x = row["signal_prev"] * x0 + row["direction"] * eps
        if sampler.eta > 0 and key is not None:
            # By timestep, so that a run with fewer steps from `start` repeats the same draws.
            x = x + row["sigma"] * jax.random.normal(jax.random.fold_in(key, row["t"]), x.shape)
        return x, ({"x": x, "x0": x0} if return_trajectory else None)

    x, trajectory = scan(step, x_T.astype(jnp.float32), rows)
    return (x, trajectory) if return_trajectory else x
