"""Lengths of the wide severities, in pixels, against the standard ones, in fractions of the shorter side."""

import pytest

from data_pipelines.degradations import blur, rain, raindrop, snow, wide_range

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
