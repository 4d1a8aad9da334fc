"""Severities from imperceptible to strong: what they reach, and that they decide nothing but the severity."""

import numpy as np
import pytest

from data_pipelines.degradations.wide_range import WIDE, nearly_clean
from data_pipelines.sources.folders import ImageFolder, bundled_photos
from data_pipelines.tasks import TASKS


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    pixels = ImageFolder(bundled_photos("heldout"))[0]["image"]
    return np.ascontiguousarray(pixels[:128, :128]).astype(np.float32) / np.float32(255)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(1 / max(np.mean((a - b) ** 2), 1e-10)))


def test_every_task_has_a_draw():
    assert WIDE.keys() == {task.name for task in TASKS}


@pytest.mark.parametrize("name", WIDE)
def test_draws_go_from_mild_to_strong(name, image):
    drawn = [WIDE[name](image, np.random.default_rng(seed)) for seed in range(24)]
    assert all(one.shape == image.shape and one.dtype == np.float32 for one in drawn)
    assert all(one.min() >= 0 and one.max() <= 1 for one in drawn)
    values = [psnr(one, image) for one in drawn]
    assert max(values) - min(values) > 8, values
    np.testing.assert_array_equal(drawn[3], WIDE[name](image, np.random.default_rng(3)))


def test_a_nearly_clean_image_needs_no_restoration(image):
    drawn = [nearly_clean(image, np.random.default_rng(seed)) for seed in range(24)]
    assert min(psnr(one, image) for one in drawn) > 36
    assert sum(np.array_equal(one, image) for one in drawn) >= 2
