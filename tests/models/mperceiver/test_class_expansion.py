"""A class added to a model: what is there stays as it was, and the new class starts as the mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.class_expansion import expand_classes, one_more_class, without_last_class
from mperceiver_jax.models.mperceiver.model import MPerceiver
from tests.support.tiny_model import CLASSES, single_scale_config, tiny_batch, tiny_values

MIXTURE = np.array([0.2, 0.7, 0.1], np.float32)


@pytest.fixture(scope="module")
def models():
    """(model, its parameters, model with a class more, its parameters); nowhere zero where it matters."""
    config = single_scale_config()
    old, new = MPerceiver(config), MPerceiver(one_more_class(config))
    rng = np.random.default_rng(1)
    values = {
        path: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for path, value in tiny_values(old).items()
    }
    return old, values, new, dict(expand_classes(values, MIXTURE))


def outputs(model, values, batch):
    """Everything that depends on the classes, from the image to the restored one."""
    structure, _ = parameters.split(model)

    @jax.jit
    def compute(values, lq, lq_clip):
        merged = parameters.merge(structure, values)
        condition = merged.condition(lq * 2 - 1, lq_clip)
        t = jnp.full((lq.shape[0],), 500)
        noise = merged.predict(condition.z_lq, t, condition)
        return condition.context, noise, merged.decode(noise, lq * 2 - 1, condition.taps, condition.logits)

    return compute(values, batch["lq"], batch["lq_clip"])


def test_it_is_the_larger_model(models):
    _, _, new, values = models
    declared = {path: variable.get_value().shape for path, variable in parameters.declared(new).items()}
    assert {path: value.shape for path, value in values.items()} == declared
    assert all(value.dtype == np.float32 for value in values.values())


def test_a_class_of_probability_zero_changes_nothing(models):
    old, before, new, after = models
    batch = tiny_batch(2)
    silent = outputs(new, without_last_class(after), batch)
    for expected, found in zip(outputs(old, before, batch), silent, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # That it would change something shows what `never` does.
    assert np.abs(np.asarray(outputs(new, after, batch)[2]) - silent[2]).max() > 1e-3


def test_the_new_class_is_the_mixture(models):
    _, before, _, after = models
    mixed = {
        "tp": lambda x: (x[-1], np.tensordot(MIXTURE, x[:CLASSES], 1)),
        "ir_adapter.visual_prompt": lambda x: (x[:, -1], np.einsum("c,sc...->s...", MIXTURE, x[:, :CLASSES])),
        "predictor.fc2.weight": lambda x: (x[:, -1], x[:, :CLASSES] @ MIXTURE),
        "drm.down_blocks.0.blocks.0.degradation.weight": lambda x: (x[-1], MIXTURE @ x[:CLASSES]),
    }
    for path, pair in mixed.items():
        np.testing.assert_allclose(*pair(after[path]), rtol=1e-5, atol=1e-6, err_msg=path)
    assert np.array_equal(after[f"cm_inv.attns.{CLASSES}.to_q.weight"], before["cm_inv.attns.1.to_q.weight"])


@pytest.mark.parametrize("mixture", [[0.5, 0.5], [0.5, 0.5, 0.5], [1.5, -0.5, 0.0]])
def test_what_is_no_mixture_is_refused(models, mixture):
    with pytest.raises(ValueError, match="mixture: 3 probabilities that sum to one"):
        dict(expand_classes(models[1], np.array(mixture)))
