"""The training step by itself, with losses small enough to redo by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mperceiver_jax.optim.optimizer import OptimizerConfig, make_optimizer
from mperceiver_jax.optim.spike_limiter import limit_spikes
from mperceiver_jax.training.step import SplitLoss, initial_state, make_step

ROOT = jax.random.key(7)
FROZEN = {"scale": jnp.float32(2.0)}


def noisy_regression(params, batch, key, step):
    """Mean over the batch of (scale x w + noise - y)^2."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    error = params["scale"] * batch["x"] @ params["w"] + noise - batch["y"]
    return jnp.square(error).mean(), {"noise": noise.sum(), "at": step.astype(jnp.float32)}


def start():
    return {"w": jnp.asarray([1.0, -2.0, 0.5])}


def data(size=12):
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((size, 3), np.float32), "y": rng.standard_normal(size, np.float32)}


def stepper(optimizer, loss=noisy_regression, ema=False, **options):
    state = initial_state(start(), optimizer, ema)
    return state, jax.jit(make_step(loss, optimizer, **options))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradient_is_the_mean_over_micro_batches_each_with_its_own_key(accumulation):
    state, step = stepper(optax.sgd(0.1), accumulation=accumulation)
    batch, w = data(), start()["w"]
    for number in range(2):
        state, metrics = step(state, FROZEN, batch, ROOT)
        key = jax.random.fold_in(ROOT, number)
        results = []
        for i in range(accumulation):
            part = {name: value[i::accumulation] for name, value in batch.items()}
            scalar = partial(noisy_regression, batch=part, key=jax.random.fold_in(key, i), step=state.step)
            results.append(jax.value_and_grad(lambda w, f=scalar: f(FROZEN | {"w": w})[0])(w))
        losses, gradients = zip(*results, strict=True)
        gradient = sum(gradients) / accumulation
        w = w - 0.1 * gradient
        np.testing.assert_allclose(state.trainable["w"], w, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(gradient), rtol=1e-5)
        assert metrics["at"] == number and metrics["finite"] == 1
    assert int(state.step) == 2


def test_accumulation_changes_nothing_but_the_random_numbers():
    def loss(params, batch, key, step):
        return noisy_regression(params, batch, jax.random.key(0), step)[0] * 0 + jnp.square(
            batch["x"] @ params["w"] - batch["y"]
        ).mean(), {}

    found = []
    for accumulation in (1, 2, 4):
        state, step = stepper(optax.adam(0.1), loss, accumulation=accumulation)
        for _ in range(3):
            state, metrics = step(state, FROZEN, data(), ROOT)
        found.append((*state.trainable["w"], metrics["loss"], metrics["grad_norm"]))
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-5)


def test_every_step_and_micro_batch_has_its_own_draws():
    state, step = stepper(optax.sgd(0.0), accumulation=2)
    draws = set()
    for _ in range(3):
        state, metrics = step(state, FROZEN, data(), ROOT)
        draws.add(float(metrics["noise"]))
    again, _ = stepper(optax.sgd(0.0))
    assert float(step(again, FROZEN, data(), ROOT)[1]["noise"]) in draws
    assert len(draws) == 3
    assert float(step(again, FROZEN, data(), jax.random.key(8))[1]["noise"]) not in draws


def test_the_average_follows_at_its_rate():
    state, step = stepper(optax.sgd(0.1), ema=True, ema_decay=0.9)
    average = np.asarray(start()["w"])
    for _ in range(3):
        state, _ = step(state, FROZEN, data(), ROOT)
        average = 0.9 * average + 0.1 * np.asarray(state.trainable["w"])
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-6)
    assert np.abs(average - state.trainable["w"]).max() > 1e-3
    assert stepper(optax.sgd(0.1))[0].ema == {}


def test_the_whole_state_is_donated_and_nothing_is_shared_within_it():
    optimizer = optax.adam(0.1)
    state = jax.jit(lambda values: initial_state(values, optimizer, ema=True))(start())
    step = jax.jit(make_step(noisy_regression, optimizer, ema_decay=0.9), donate_argnums=0)
    after, _ = step(state, FROZEN, data(), ROOT)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, FROZEN)))


def test_optimizer_and_average_exist_for_trained_parameters_only():
    state, step = stepper(optax.adam(0.1), ema=True, ema_decay=0.9)
    after, _ = step(state, FROZEN, data(), ROOT)
    for tree in (state, after):
        assert sorted(leaf.shape for leaf in jax.tree.leaves(tree)) == [(), ()] + [(3,)] * 4
        assert tree.trainable.keys() == tree.ema.keys() == {"w"}


def test_clipping_bounds_the_norm_that_the_optimizer_sees_and_reports_the_true_one():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.0, clip_norm=0.01)
    moments = {}
    for clip in (0.0, 0.01):
        optimizer = make_optimizer(OptimizerConfig(**(vars(config) | {"clip_norm": clip})), 10)
        state, step = stepper(optimizer)
        state, metrics = step(state, FROZEN, data(), ROOT)
        mu = next(value for path, value in jax.tree_util.tree_leaves_with_path(state.opt_state) if "mu" in str(path))
        moments[clip] = float(jnp.linalg.norm(mu)) / 0.1
        assert metrics["grad_norm"] > 1
    np.testing.assert_allclose(moments[0.0], metrics["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(moments[0.01], 0.01, rtol=1e-5)


def infinite_slope(params, batch, key, step):
    """Finite, but its gradient is not where `at` is 0."""
    return jnp.sqrt(jnp.abs(params["w"] * batch["at"]).sum()), {}


@pytest.mark.parametrize(
    ("loss", "good", "bad"),
    [
        (noisy_regression, data(), data() | {"y": np.full(12, np.nan, np.float32)}),
        (noisy_regression, data(), data() | {"y": np.full(12, np.inf, np.float32)}),
        (infinite_slope, {"at": np.ones((2, 3), np.float32)}, {"at": np.zeros((2, 3), np.float32)}),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(loss, good, bad, accumulation):
    state, step = stepper(optax.adamw(0.1), loss, ema=True, ema_decay=0.9, accumulation=accumulation)
    state, metrics = step(state, FROZEN, good, ROOT)
    assert metrics["finite"] == 1
    after, metrics = step(state, FROZEN, bad, ROOT)
    assert metrics["finite"] == 0
    assert int(after.step) == int(state.step) + 1 == 2
    same = jax.tree.map(np.array_equal, after._replace(step=0), state._replace(step=0))
    assert all(jax.tree.leaves(same))
    recovered, metrics = step(after, FROZEN, good, ROOT)
    assert metrics["finite"] == 1 and not np.array_equal(recovered.trainable["w"], after.trainable["w"])


def test_losses_are_traced_with_the_number_of_the_update():
    def loss(params, batch, key, step):
        return jnp.where(step >= 2, params["w"].sum(), 0.0), {}

    state, step = stepper(optax.sgd(1.0), loss)
    changes = []
    for _ in range(4):
        before = np.asarray(state.trainable["w"])
        state, _ = step(state, FROZEN, data(), ROOT)
        changes.append(float((before - state.trainable["w"]).sum()))
    assert changes == [0, 0, 3, 3]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_limiter_of_spikes_judges_and_scales_its_part_of_the_loss_alone(accumulation):
    def loss(params, batch, key, step):
        distance = jnp.square(params["w"][:2] - batch["y"].mean()).sum()
        auxiliary = 10 + params["w"].sum()
        return SplitLoss(distance, auxiliary), {"distance": distance}

    optimizer = optax.chain(limit_spikes(5.0), optax.sgd(1.0))
    state, step = stepper(optimizer, loss, accumulation=accumulation)
    w, least = np.asarray(start()["w"]), np.inf
    for target, spike in ((0.0, False), (8.0, True), (-2.0, False)):
        state, metrics = step(state, {}, {"y": jnp.full(4, target)}, ROOT)
        distance = np.square(w[:2] - target).sum()
        least = min(least, distance)
        assert (distance > 5 * least) == spike
        scale = 2.5 * least / distance if spike else 1.0
        w = w - np.append(2 * scale * (w[:2] - target), 0) - 1
        np.testing.assert_allclose(metrics["distance"], distance, rtol=1e-5)
        np.testing.assert_allclose(state.trainable["w"], w, rtol=1e-5)
