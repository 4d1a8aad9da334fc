"""DPM-Solver++ (2M) against diffusers' scheduler on the same model outputs, and as a solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.config.experiment import SamplerConfig, from_mapping
from mperceiver_jax.diffusion.dpm_solver import DPMSolver
from mperceiver_jax.diffusion.restoration import sampler_of
from mperceiver_jax.diffusion.samplers import DDIM
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.errors import ConfigError

SCHEDULE = Schedule()


def model_output(x, t):
    """Works for jax, numpy and torch."""
    return 0.3 * x + t.reshape(-1, *[1] * (x.ndim - 1)) / 1000


def test_timesteps():
    np.testing.assert_array_equal(DPMSolver(SCHEDULE, 4, "time").timesteps, [250, 500, 749, 999])
    even = DPMSolver(SCHEDULE, 6).timesteps
    np.testing.assert_array_equal(even, [0, 11, 103, 413, 757, 999])
    alphas = SCHEDULE.alphas_cumprod[even]
    widths = np.diff(np.log(alphas / (1 - alphas)))
    np.testing.assert_allclose(widths, widths.mean(), rtol=0.03)
    for steps in (1, 2, 60, 999):
        timesteps = DPMSolver(SCHEDULE, steps).timesteps
        assert len(timesteps) == steps and timesteps[-1] == 999 and (np.diff(timesteps) > 0).all()


def test_order_is_lower_at_the_ends():
    slope = lambda *fields: DPMSolver(SCHEDULE, *fields).coefficients["slope"]
    few = slope(4, "time", "abar0")
    assert few[0] == few[-1] == 0 and (few[1:-1] > 0).all()
    many = slope(15, "time", "abar0")
    assert many[0] == 0 and (many[1:] > 0).all()
    assert slope(15)[-1] == 0  # its end is at infinity


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("steps", "spacing", "final_alpha"),
    [
        (1, "time", "one"),
        (6, "time", "abar0"),
        (20, "time", "one"),
        (20, "time", "abar0"),
        (6, "log_snr", "one"),
        (20, "log_snr", "one"),
        (20, "log_snr", "abar0"),
    ],
)
def test_equals_diffusers(steps, spacing, final_alpha, prediction):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero" if final_alpha == "one" else "sigma_min",
    )
    ours = DPMSolver(SCHEDULE, steps, spacing, final_alpha)
    if spacing == "time":
        theirs.set_timesteps(steps)
    else:
        theirs.set_timesteps(timesteps=ours.timesteps[::-1].tolist())
    np.testing.assert_array_equal(ours.timesteps[::-1], theirs.timesteps.numpy())

    def denoise(x, t):
        out = model_output(x, t)
        return out if prediction == "epsilon" else SCHEDULE.noise_of_velocity(x, out, t)

    x_T = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    x = torch.from_numpy(np.array(x_T))
    for t in theirs.timesteps:
        x = theirs.step(model_output(x, torch.full((2,), int(t))), t, x).prev_sample
    expected = x.numpy()
    found = np.asarray(jax.jit(lambda x: ours(denoise, x))(x_T))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_few_steps_of_second_order_are_worth_many_of_ddim():
    """For Gaussian data of deviation 0.5 the denoiser is known, and where its path ends."""
    variance = lambda a: 0.25 * a + 1 - a

    def exact(x, t):
        a = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)[t].reshape(-1, 1)
        return jnp.sqrt(1 - a) * x / variance(a)

    def error(sampler):
        end = np.sqrt(0.25 / variance(SCHEDULE.alphas_cumprod[sampler.timesteps[-1]]))
        return abs(float(sampler(exact, jnp.ones((1, 1)))[0, 0]) / end - 1)

    few, more = (error(DPMSolver(SCHEDULE, steps)) for steps in (10, 20))
    assert more < few / 3 < 0.01  # second order: twice the steps, a quarter of the error
    assert few < error(DDIM(SCHEDULE, 50)) / 2


@pytest.mark.usefixtures("unchecked_shapes")
def test_chosen_by_name():
    assert sampler_of(SamplerConfig("dpmpp_2m", 12)) == DPMSolver(SCHEDULE, 12)
    assert sampler_of(SamplerConfig("reference", 12)) == DDIM(SCHEDULE, 12, mode="reference")
    with pytest.raises(ConfigError, match=r"sampler\.eta: .*'dpmpp_2m' draws no noise"):
        from_mapping(SamplerConfig, {"name": "dpmpp_2m", "eta": 0.5}, "config.sampler")
    for fields in ({"steps": 0}, {"steps": 1000}, {"final_alpha": "zero"}, {"spacing": "karras"}):
        with pytest.raises(ValueError, match="DPMSolver"):
            DPMSolver(SCHEDULE, **fields)
