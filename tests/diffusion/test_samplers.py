import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.diffusion.samplers import DDIM, sample
from mperceiver_jax.diffusion.schedule import Schedule
from tests.support.parity_fixtures import fixture

SCHEDULE = Schedule()


def artificial_noise(x, t):
    """The noise function of the fixture; works for jax, numpy and torch."""
    return 0.1 * x + t.reshape(-1, *[1] * (x.ndim - 1)) / 1000


def test_default_timesteps_are_shifted_by_one_and_end_on_the_clean_estimate():
    sampler = DDIM(SCHEDULE)
    np.testing.assert_array_equal(sampler.timesteps, np.arange(1, 1000, 20))
    assert sampler.timesteps[-1] == 981
    assert sampler.alphas_prev[0] == 1.0
    np.testing.assert_array_equal(sampler.alphas_prev[1:], sampler.alphas[:-1])
    assert DDIM(SCHEDULE, final_alpha="abar0").alphas_prev[0] == SCHEDULE.alphas_cumprod[0]
    few = DDIM(SCHEDULE, steps=5)
    _, trajectory = sample(few, artificial_noise, jnp.ones((1, 2)), return_trajectory=True)
    np.testing.assert_allclose(trajectory["x"][-1], trajectory["x0"][-1], rtol=1e-6)


@pytest.mark.parametrize(("steps", "last", "length"), [(30, 990, 31), (50, 980, 50), (7, 994, 8), (999, 999, 1000)])
def test_the_reference_visits_the_whole_table_of_the_release(steps, last, length):
    sampler = DDIM(SCHEDULE, steps=steps, mode="reference")
    np.testing.assert_array_equal(sampler.timesteps, list(range(0, 1000, 1000 // steps)))
    assert (sampler.timesteps[-1], len(sampler.timesteps)) == (last, length)
    _, trajectory = sample(sampler, artificial_noise, jnp.ones((1, 2)), return_trajectory=True)
    assert len(trajectory["x"]) == length


@pytest.mark.parametrize("steps", [5, 50])
def test_reference_tables_equal_the_release(steps):
    release = fixture("08_sampler")
    sampler = DDIM(SCHEDULE, steps=steps, mode="reference")
    np.testing.assert_array_equal(sampler.timesteps, release.outputs[f"timesteps.{steps}"])
    release.check(f"alphas.{steps}", sampler.alphas)
    release.check(f"alphas_prev.{steps}", sampler.alphas_prev)
    for eta in (0.0, 1.0):
        table = DDIM(SCHEDULE, steps=steps, mode="reference", eta=eta).sigmas
        release.check(f"sigmas.{steps}.eta{eta}", table)


@pytest.mark.parametrize("run, start", [("run5", None), ("run5_start3", 3)])
def test_reference_trajectories_equal_the_release(run, start):
    release = fixture("08_sampler")
    sampler = DDIM(SCHEDULE, steps=5, mode="reference", start=start)
    np.testing.assert_array_equal(sampler.timesteps[::-1], release.outputs[f"{run}.calls"])
    go = jax.jit(lambda x: sample(sampler, artificial_noise, x, return_trajectory=True))
    x, trajectory = go(release.inputs["x_T"])
    release.check(f"{run}.x", trajectory["x"])
    release.check(f"{run}.pred_x0", trajectory["x0"])
    np.testing.assert_array_equal(x, trajectory["x"][-1])
    # The release's last call changes nothing.
    np.testing.assert_allclose(trajectory["x"][-1], trajectory["x"][-2], atol=1e-5)


@pytest.mark.parametrize("final_alpha", ["one", "abar0"])
@pytest.mark.parametrize("steps, eta", [(5, 0.0), (7, 0.6)])
def test_equals_diffusers(steps, eta, final_alpha):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=final_alpha == "one",
        steps_offset=1,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(steps)
    ours = DDIM(SCHEDULE, steps=steps, eta=eta, final_alpha=final_alpha)
    np.testing.assert_array_equal(ours.timesteps[::-1], theirs.timesteps.numpy())

    key = jax.random.key(3)
    x_T = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    x = torch.from_numpy(np.array(x_T))
    for t in theirs.timesteps:
        noise = torch.from_numpy(np.array(jax.random.normal(jax.random.fold_in(key, int(t)), x_T.shape)))
        eps = artificial_noise(x, torch.full((2,), int(t)))
        x = theirs.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
    np.testing.assert_allclose(sample(ours, artificial_noise, x_T, key), x.numpy(), rtol=1e-4, atol=1e-5)


def test_a_perfect_denoiser_recovers_the_clean_latent():
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))

    def oracle(x, t):
        a = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)[t].reshape(-1, 1, 1, 1)
        return (x - jnp.sqrt(a) * z) / jnp.sqrt(1 - a)

    x_T = jax.random.normal(jax.random.key(1), z.shape)
    for eta in (0.0, 1.0):
        out = sample(DDIM(SCHEDULE, steps=5, eta=eta), oracle, x_T, jax.random.key(2))
        np.testing.assert_allclose(out, z, atol=1e-4)
    reference = sample(DDIM(SCHEDULE, steps=5, mode="reference"), oracle, x_T)
    residue = float(jnp.std(reference - z))
    assert 0.02 < residue < 0.04  # the release stops at abar_0: sqrt(1 - 0.99915) = 0.029


def test_fresh_noise_comes_from_the_key_alone():
    sampler = DDIM(SCHEDULE, steps=5, eta=1.0, final_alpha="abar0")
    x_T = jnp.ones((1, 4, 4, 1))

    def run(seed):
        return np.asarray(sample(sampler, artificial_noise, x_T, jax.random.key(seed)))

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    with pytest.raises(ValueError, match="key"):
        sample(sampler, artificial_noise, x_T)


def test_the_denoiser_is_traced_once_and_sees_timesteps_descending():
    calls, seen = [], []

    def denoise(x, t):
        calls.append(x.shape)
        jax.debug.callback(lambda t: seen.append(t.tolist()), t, ordered=True)
        return x

    jax.block_until_ready(sample(DDIM(SCHEDULE, steps=4), denoise, jnp.ones((2, 3))))
    jax.effects_barrier()
    assert calls == [(2, 3)]
    assert seen == [[751, 751], [501, 501], [251, 251], [1, 1]]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"steps": 1000}, {"eta": 1.5}, {"mode": "plms"}, {"final_alpha": "zero"}, {"start": 51}],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="DDIM"):
        DDIM(SCHEDULE, **fields)
