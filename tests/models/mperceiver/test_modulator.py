import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.layers import ResnetBlock
from mperceiver_jax.models.mperceiver.modulator import Modulator
from tests.support.parity_fixtures import fixture, nhwc


def test_equals_the_release_alone_and_inside_a_residual_block():
    spade = fixture("03_spade_resblock")
    modulator = Modulator(64, 12, hidden=128)
    convert.load(modulator, spade.substate("spade."))
    x, cond, emb, spade_x = (spade.inputs[name] for name in ("x", "cond", "emb", "spade_x"))
    spade.check("spade", modulator(nhwc(spade_x), nhwc(cond)))

    block = ResnetBlock(32, 64, time_width=96, modulator=Modulator(64, 12, hidden=128))
    convert.load(block, spade.state)
    out = block(nhwc(x), emb, nhwc(cond))
    spade.check("block", out)
    spade.check("block_spade_output", out - block.conv_shortcut(nhwc(x)))
    dumped = convert.dump(block)
    assert dumped.keys() == spade.state.keys()
    for key, value in spade.state.items():
        np.testing.assert_array_equal(dumped[key], value, strict=True)


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    h, features = rng.standard_normal((2, 4, 6, 8), np.float32), rng.standard_normal((2, 4, 6, 5), np.float32)
    return jnp.asarray(3 * h + 1), jnp.asarray(features)


def test_zero_init_starts_without_scale_and_shift(maps):
    h, features = maps
    modulator = parameters.initialise(Modulator(8, 5, hidden=6, groups=2))
    for value in modulator.scale_and_shift(features):
        np.testing.assert_array_equal(value, np.zeros(h.shape))
    np.testing.assert_array_equal(modulator(h, features), modulator.param_free_norm(h))


def test_residual_form_starts_as_identity(maps):
    h, features = maps
    modulator = parameters.initialise(Modulator(8, 5, hidden=6, groups=2, form="residual"))
    np.testing.assert_array_equal(modulator(h, features), h)


def test_zero_init_still_learns(maps):
    h, features = maps
    structure, params = parameters.split(parameters.initialise(Modulator(8, 5, hidden=6, groups=2)))

    def loss(params):
        return jnp.square(parameters.merge(structure, params)(h, features)).mean()

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.abs(grads[f"{name}.weight"]).max() > 0 for name in ("mlp_gamma", "mlp_beta"))
    # The shared convolution follows one step later, which needs its hidden map to be alive.
    moved = {path: value - 0.1 * grads[path] for path, value in params.items()}
    assert np.abs(jax.jit(jax.grad(loss))(moved)["mlp_shared.0.weight"]).max() > 0


def test_the_forms_differ_by_what_they_scale(maps):
    h, features = maps
    release = Modulator(8, 5, hidden=6, groups=2, init="reference")
    values = parameters.initial_values(release, seed=1)
    parameters.assign(release, values)
    residual = Modulator(8, 5, hidden=6, groups=2, form="residual", init="reference")
    parameters.assign(residual, values)
    assert np.abs(release.scale_and_shift(features)[0]).max() > 0.01
    expected = release(h, features) - release.param_free_norm(h) + h
    np.testing.assert_allclose(residual(h, features), expected, atol=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("switch", [{"form": "other"}, {"init": "ones"}])
def test_unknown_switches_are_refused(switch):
    with pytest.raises(ValueError, match=next(iter(switch.values()))):
        Modulator(8, 5, **switch)
