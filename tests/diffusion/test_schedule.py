import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.diffusion.schedule import Schedule
from tests.support.parity_fixtures import fixture


def test_tables_have_the_published_values():
    facts = {0: 0.999150000, 1: 0.998296028, 20: 0.981314362, 21: 0.980380748, 500: 0.276332684}
    facts |= {980: 0.005843783, 981: 0.005775500, 999: 0.004660099}
    schedule = Schedule()
    for t, expected in facts.items():
        assert schedule.alphas_cumprod[t] == pytest.approx(expected, abs=1e-9)
    release = fixture("08_sampler")
    release.check("betas_float64", schedule.betas)
    release.check("alphas_cumprod_float64", schedule.alphas_cumprod)
    assert schedule.betas.dtype == np.float64


def test_add_noise_equals_the_release():
    release = fixture("08_sampler")
    z, noise = release.inputs["x_start"], release.inputs["noise"]
    add = jax.jit(Schedule().add_noise)
    made = [add(z, noise, jnp.full(len(z), t)) for t in release.inputs["q_timesteps"]]
    release.check("q_sample", np.stack(made))


def test_every_example_has_its_own_timestep():
    rng = np.random.default_rng(0)
    z, noise = rng.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    t = jnp.array([0, 400, 999])
    schedule = Schedule()
    z_t = schedule.add_noise(z, noise, t)
    a = schedule.alphas_cumprod[np.asarray(t)].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(z_t, np.sqrt(a) * z + np.sqrt(1 - a) * noise, atol=1e-6)


def test_bfloat16_latents_keep_their_dtype_but_scales_are_float32():
    z = jnp.ones((1, 2), jnp.bfloat16)
    z_t = Schedule().add_noise(z, jnp.zeros_like(z), jnp.array([999]))
    assert z_t.dtype == jnp.bfloat16
    assert float(z_t[0, 0]) == float(jnp.bfloat16(np.sqrt(0.004660099)))


@pytest.mark.parametrize("fields", [{"steps": 0}, {"beta_start": 0.5, "beta_end": 0.1}, {"beta_end": 1.0}])
def test_impossible_schedules_are_refused(fields):
    with pytest.raises(ValueError, match="Schedule"):
        Schedule(**fields)
