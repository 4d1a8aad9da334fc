"""Learning rates over a stage, and what the optimizer refuses."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mperceiver_jax.optim.optimizer import OptimizerConfig, learning_rate_at, make_optimizer


def rates(steps=8, **fields):
    config = OptimizerConfig(learning_rate=1e-2, **fields)
    return [learning_rate_at(config, steps, step) for step in range(steps)]


def test_constant_rate_after_a_linear_rise():
    np.testing.assert_allclose(rates(), [1e-2] * 8, rtol=1e-6)
    rise = rates(warmup_steps=4)
    assert rise[0] > 0 and all(a < b for a, b in pairwise(rise[:5]))
    np.testing.assert_allclose(rise[4:], [1e-2] * 4, rtol=1e-6)


def test_cosine_rate_ends_at_its_fraction():
    fall = rates(schedule="cosine", final_fraction=0.1, warmup_steps=2)
    assert all(a > b for a, b in pairwise(fall[2:]))
    end = learning_rate_at(
        OptimizerConfig(learning_rate=1e-2, schedule="cosine", final_fraction=0.1, warmup_steps=2), 8, 8
    )
    np.testing.assert_allclose(end, 1e-3, rtol=1e-5)


def test_a_rise_longer_than_the_stage_is_shortened_to_it():
    rise = rates(steps=3, warmup_steps=100)
    assert rise[0] > 1e-3 and rise[0] < rise[1] < rise[2]


def test_decay_is_decoupled_and_for_every_tensor():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    params = {"w": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    zero = {path: value * 0 for path, value in params.items()}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for value in updates.values():
        np.testing.assert_allclose(value, -0.1 * 0.5 * 4.0, rtol=1e-6)


def test_muon_steps_kernels_by_orthogonal_matrices_and_the_rest_as_nadamw():
    rng = np.random.default_rng(0)
    params = {"conv.weight": jnp.zeros((3, 3, 4, 8)), "conv.bias": jnp.zeros(8)}
    gradients = {path: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for path, value in params.items()}
    optimizer = make_optimizer(OptimizerConfig(name="muon", learning_rate=0.1, weight_decay=0.0), 10)
    made = optimizer.update(gradients, optimizer.init(params), params)[0]
    nesterov = optax.nadamw(0.1, b1=0.9, b2=0.999, weight_decay=0.0)
    expected = nesterov.update(gradients, nesterov.init(params), params)[0]
    np.testing.assert_allclose(made["conv.bias"], expected["conv.bias"], rtol=1e-5)
    matrix = np.asarray(made["conv.weight"]).reshape(36, 8)
    singular = np.linalg.svd(matrix, compute_uv=False)
    # Newton-Schulz in five steps brings every singular value near one, not onto it.
    assert singular.max() / singular.min() < 2
    assert np.linalg.cond(np.asarray(gradients["conv.weight"]).reshape(36, 8)) > 2
    np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.1 * 0.2, rtol=0.2)


def test_unusable_settings_are_named():
    with pytest.raises(ValueError, match=r"name: 'adamw' or 'muon', not 'sgd'"):
        OptimizerConfig(name="sgd")
    with pytest.raises(ValueError, match=r"schedule: 'constant', 'cosine', .*, not 'linear'"):
        OptimizerConfig(schedule="linear")
    with pytest.raises(ValueError, match=r"betas: two numbers"):
        OptimizerConfig(betas=(0.9,))
