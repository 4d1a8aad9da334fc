"""Statistics over the pixels of an image that its tiles share."""

import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models import parameters
from mperceiver_jax.models.layers import GroupNorm
from mperceiver_jax.models.restorers.nafnet import NAFNet, NAFNetConfig
from mperceiver_jax.models.shared_statistics import given, recorded, scan


def norm():
    layer = GroupNorm(4, groups=2)
    parameters.initialise(layer, 0)
    return layer


def batch(seed=0, side=8):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, (3, side, side, 4)), jnp.float32)


def test_recorded_statistics_are_those_of_the_batch_as_one_image():
    layer, squares = norm(), batch()
    with recorded() as statistics:
        together = layer(squares)
    one = layer(jnp.concatenate(list(squares), 1)[None])[0]
    np.testing.assert_allclose(jnp.concatenate(list(together), 1), one, atol=1e-5)
    tile = squares[:1, :4]
    with given(statistics):
        np.testing.assert_allclose(layer(tile), together[:1, :4], atol=1e-5)
    assert np.abs(layer(tile) - together[:1, :4]).max() > 0.01  # By its own statistics it is another.


def test_loops_have_statistics_of_each_iteration():
    layer, squares = norm(), batch()
    rows = jnp.arange(1.0, 4.0)
    loop = lambda x: scan(lambda carry, row: (layer(carry) * row + carry, None), x, rows)[0]
    with recorded() as statistics:
        together = loop(squares)
    (stacked,) = statistics
    assert stacked[0][0].shape == (3, 1, 1, 1, 4)
    with given(statistics):
        np.testing.assert_allclose(loop(squares[1:2]), together[1:2], atol=1e-4)
    x = squares
    for row in rows:
        x = layer(x) * row + x
    np.testing.assert_allclose(loop(squares), x, atol=1e-4)


def test_the_channel_attention_of_nafnet_is_shared():
    network = NAFNet(NAFNetConfig(width=4, encoder=(1,), middle=1, decoder=(1,)))
    parameters.initialise(network, 0)
    for block in (*network.encoders[0], *network.middle, *network.decoders[0]):
        block.beta[...] = block.gamma[...] = jnp.ones_like(block.beta[...])
    squares = batch()[..., :3] / 10
    with recorded() as statistics:
        together = network(squares)
    assert len(statistics) == 3
    with given(statistics):
        np.testing.assert_allclose(network(squares[2:]), together[2:], atol=1e-5)
    assert np.abs(network(squares[2:]) - together[2:]).max() > 1e-4


@pytest.mark.parametrize(("count", "message"), [(1, "fewer than it takes"), (3, "more than it takes")])
def test_statistics_of_another_network_are_refused(count, message):
    layer, x = norm(), batch()
    with recorded() as statistics:
        for _ in range(count):
            layer(x)
    with pytest.raises(ValueError, match=message), given(statistics):
        layer(layer(x))
