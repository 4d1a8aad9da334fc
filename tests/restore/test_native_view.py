"""A predictor that sees squares at native resolution, when images are restored."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from data_pipelines.tasks import TASKS
from data_pipelines.transforms import native_views
from mperceiver_jax.config.experiment import SamplerConfig
from mperceiver_jax.diffusion.restoration import sampler_of
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.restore import Restorer, RestoreSettings
from tests.support.tiny_model import CLASSES, CLIP_SIDE, single_scale_config, tiny_values

VIEWS = 4


@pytest.fixture(scope="module")
def model():
    config = single_scale_config()
    return MPerceiver(replace(config, predictor=replace(config.predictor, view="native", views=VIEWS)))


@pytest.fixture(scope="module")
def restorer(model):
    sampler = sampler_of(SamplerConfig(steps=1))
    settings = RestoreSettings(min_size=48, refine=False, tile=0)
    return Restorer(model, tiny_values(model), settings, sampler=sampler, tasks=TASKS[:CLASSES])


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(37, 50), (1, 1), (5, 40), (70, 90)])
def test_images_of_any_size_are_seen_without_the_padding_of_the_restoration(model, restorer, size):
    """Squares of the image alone: borders that are added to restore it are no part of the degradation."""
    image = image_of(*size)
    structure, _ = parameters.split(model)
    views = native_views(image / np.float32(255), CLIP_SIDE, VIEWS)[None]
    logits = parameters.merge(structure, tiny_values(model)).perceive(views)[1]
    np.testing.assert_allclose(list(restorer.predict(image).values()), jax.nn.softmax(logits[0]), atol=1e-5)


def test_restoring_uses_the_same_prediction(restorer):
    image = image_of(37, 50)
    found = restorer.restore(image)
    assert found.image.shape == image.shape
    np.testing.assert_allclose(list(found.probabilities.values()), list(restorer.predict(image).values()), atol=1e-5)


def test_every_tile_is_restored_under_the_views_of_the_whole_image(model, monkeypatch):
    config = model.config
    local = MPerceiver(
        replace(config, vae=replace(config.vae, mid_attention=False), unet=replace(config.unet, self_attention=False))
    )
    image = image_of(130, 160)
    settings = RestoreSettings(min_size=48, refine=False, tile=128, overlap=16)
    sampler = sampler_of(SamplerConfig(steps=1))
    restorer = Restorer(local, tiny_values(local), settings, sampler=sampler, tasks=TASKS[:CLASSES])
    run, conditions = restorer._restore_one, []

    def recorded(params, lq, condition, key, logits, tile):
        conditions.append(np.asarray(condition))
        return run(params, lq, condition, key, logits, tile)

    monkeypatch.setattr(restorer, "_restore_one", recorded)
    found = restorer.restore(image)
    assert found.image.shape == image.shape and len(conditions) > 1
    views = native_views(image / np.float32(255), CLIP_SIDE, VIEWS)[None]
    for condition in conditions:
        np.testing.assert_allclose(condition, views, atol=1e-5)
    np.testing.assert_allclose(list(found.probabilities.values()), list(restorer.predict(image).values()), atol=1e-5)
