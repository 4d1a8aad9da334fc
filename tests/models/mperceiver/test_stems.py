"""Convolutional stems of the image tower: sizes, gradients, and the detail they see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import VisionConfig, VisionTower
from mperceiver_jax.models.mperceiver.predictor import DegradationPredictor, PredictorConfig
from mperceiver_jax.models.mperceiver.stems import detail

TINY = VisionConfig(image_size=32, patch_size=8, width=24, layers=1, heads=4, embed_width=10)


@pytest.mark.parametrize("stem", ["conv", "detail"])
def test_one_position_is_left_of_every_patch_and_every_pixel_counts(stem):
    config = dataclasses.replace(TINY, stem=stem)
    tower = parameters.initialise(VisionTower(config))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32))
    assert jax.eval_shape(tower.conv1, images).shape == (2, 4, 4, 24)
    gradients = jax.jit(jax.grad(lambda x: jnp.square(tower(x)).sum()))(images)
    assert (np.abs(gradients).max((0, 3)) > 0).all()
    for side in (1, 12):
        with pytest.raises(ValueError, match=f"a power of two is needed with stem='{stem}', not {side}"):
            dataclasses.replace(config, patch_size=side)


@pytest.mark.parametrize("stem", ["conv", "detail"])
def test_stems_compute_in_the_dtype_of_the_images(stem):
    tower = parameters.initialise(VisionTower(dataclasses.replace(TINY, stem=stem)))
    assert jax.eval_shape(tower, jnp.zeros((1, 32, 32, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_detail_is_what_differs_from_the_neighbours():
    images = np.random.default_rng(1).random((1, 6, 7, 3), np.float32)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    mean = sum(padded[:, i : i + 6, j : j + 7] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(jax.jit(detail)(images), images - mean, atol=1e-6)
    np.testing.assert_allclose(detail(jnp.full((1, 5, 5, 3), 0.7)), 0, atol=1e-6)


def test_residual_branches_of_the_detail_stem_start_at_zero():
    stem = VisionTower(dataclasses.replace(TINY, stem="detail")).conv1
    values = parameters.initial_values(stem, 0)
    zero = {path for path, value in values.items() if path.endswith("weight") and not value.any()}
    assert zero == {"outer.0.weight", "outer.1.weight"}


def test_the_predictor_of_base_takes_the_place_of_the_small_one():
    base, small = PredictorConfig.base(), PredictorConfig.small()
    assert (base.classes, base.view, base.views) == (small.classes, small.view, small.views)
    assert (base.vision.image_size, base.vision.embed_width) == (small.vision.image_size, small.vision.embed_width)
    assert 0.5e6 < parameters.count(DegradationPredictor(base)) < 1.5e6
