"""The wide severities: their lengths in pixels against the standard ones, and which images take them."""

import numpy as np
import pytest

from data_pipelines.config import PipelineConfig
from data_pipelines.degradations import blur, rain, raindrop, snow, wide_range
from data_pipelines.examples import MakeExample
from data_pipelines.tasks import TASKS

LENGTHS = {
    "motion blur": (blur.MOTION_LENGTH, wide_range.MOTION_LENGTH),
    "defocus blur": (blur.DEFOCUS_RADIUS, wide_range.DEFOCUS_RADIUS),
    "rain": (rain.LENGTH, wide_range.RAIN_LENGTH),
    "snow": (snow.FLAKE, wide_range.FLAKE),
    "raindrops": (raindrop.RADIUS, wide_range.DROP_RADIUS),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_wide_lengths_cover_test_images_of_128_to_512_pixels(name):
    fractions, pixels = LENGTHS[name]
    assert pixels[0] <= 128 * fractions[0] and pixels[1] >= 512 * fractions[1]


@pytest.mark.parametrize(
    ("severities", "wide_images"), [("standard", {0}), ("wide", {40}), ("mixed", set(range(10, 31)))]
)
def test_images_that_are_degraded_over_the_wide_range(monkeypatch, severities, wide_images):
    monkeypatch.setitem(wide_range.WIDE, "denoise", lambda image, rng: np.ones_like(image))
    config = PipelineConfig(crop=8, image_size=8, clip_size=0, severities=severities)
    denoise = next(task for task in TASKS if task.name == "denoise")
    make, rng = MakeExample(config, denoise), np.random.default_rng(0)
    photograph = np.full((8, 8, 3), 128, np.uint8)
    drawn = [make.random_map({"image": photograph}, rng)["lq"][0, 0, 0] == 1.0 for _ in range(40)]
    assert sum(drawn) in wide_images


@pytest.mark.parametrize("severities", ["standard", "wide"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_degraded_images_have_the_levels_of_a_file(task, severities):
    config = PipelineConfig(crop=32, image_size=32, clip_size=0, severities=severities)
    photograph = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    levels = MakeExample(config, task).random_map({"image": photograph}, np.random.default_rng(2))["lq"] * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert levels.min() >= 0 and levels.max() <= 255
