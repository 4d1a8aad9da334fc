import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models import parameters
from mperceiver_jax.models.perceptual.patchgan import PatchGAN, PatchGANConfig


def test_full_size_has_the_parameters_of_the_original_architecture():
    # 4x4 convolutions 3-64-128-256-512-1 with biases, and three norms.
    widths = [3, 64, 128, 256, 512, 1]
    convolutions = sum(16 * i * o + o for i, o in itertools.pairwise(widths))
    assert parameters.count(PatchGAN(PatchGANConfig())) == convolutions + 2 * (128 + 256 + 512)


def test_scores_are_per_patch_and_images_do_not_influence_each_other():
    config = PatchGANConfig(base_channels=4, groups=4)
    net = parameters.initialise(PatchGAN(config))
    x = jax.random.uniform(jax.random.key(0), (2, 32, 40, 3), minval=-1)
    scores = net(x)
    assert scores.shape == (2, 2, 3, 1)
    np.testing.assert_allclose(net(x[:1]), scores[:1], atol=1e-5)


def test_contrast_is_visible():
    # Instance norm in every layer would make these two nearly indistinguishable in the middle of the network.
    net = parameters.initialise(PatchGAN(PatchGANConfig(base_channels=4, groups=4)))
    x = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3), minval=-1)
    assert np.abs(net(x) - net(0.5 * x)).max() > 1e-3


def test_too_small_images_are_refused():
    net = parameters.initialise(PatchGAN(PatchGANConfig(base_channels=4, groups=4)))
    assert net(jnp.zeros((1, 24, 24, 3))).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="24"):
        net(jnp.zeros((1, 23, 24, 3)))
