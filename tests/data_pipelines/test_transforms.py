"""Padding, crops, flips, resizing and the CLIP view."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    centre_crop,
    clip_view,
    flip,
    native_views,
    pad_to,
    predictor_view,
    random_crop,
    resize,
)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (8, 20)])
def test_padding_reflects_small_images_and_keeps_them_whole(size):
    image = random_image(*size)
    padded = pad_to(image, 16)
    assert padded.shape == (16, max(16, size[1]), 3)
    top, left = (16 - size[0]) // 2, max(16 - size[1], 0) // 2
    np.testing.assert_array_equal(padded[top : top + size[0], left : left + size[1]], image)
    if size[0] > 1:
        np.testing.assert_array_equal(padded[top - 1], padded[top + 1])  # mirrored, the border not repeated


def test_large_image_is_not_touched():
    image = random_image(16, 17)
    assert pad_to(image, 16) is image


def test_crops_take_the_same_window_of_both():
    lq = random_image(20, 30)
    gt = lq + 1
    seen = set()
    for seed in range(20):
        a, b = random_crop((lq, gt), 8, np.random.default_rng(seed))
        assert a.shape == (8, 8, 3)
        np.testing.assert_array_equal(a + 1, b)
        seen.add(float(a[0, 0, 0]))
    assert len(seen) > 10
    a, b = centre_crop((lq, gt), 8)
    np.testing.assert_array_equal(a, lq[6:14, 11:19])
    np.testing.assert_array_equal(b, gt[6:14, 11:19])
    with pytest.raises(ValueError, match="one size"):
        random_crop((lq, gt[1:]), 8, np.random.default_rng(0))


def test_every_window_can_be_drawn():
    image = np.arange(4, dtype=np.float32).reshape(1, 4, 1).repeat(2, axis=0)
    starts = {float(random_crop((image,), 2, np.random.default_rng(s))[0][0, 0, 0]) for s in range(40)}
    assert starts == {0, 1, 2}


def test_flips_are_joint_and_reach_their_group():
    lq = random_image(4, 4)
    for kind, elements in (("none", 1), ("horizontal", 2), ("dihedral", 8)):
        seen = set()
        for seed in range(60):
            a, b = flip((lq, -lq), kind, np.random.default_rng(seed))
            np.testing.assert_array_equal(a, -b)
            np.testing.assert_array_equal(np.sort(a.ravel()), np.sort(lq.ravel()))
            seen.add(a.tobytes())
        assert len(seen) == elements
    with pytest.raises(ValueError, match="flips"):
        flip((lq,), "vertical", np.random.default_rng(0))


def test_resize_is_antialiased_in_every_type():
    checker = (np.indices((32, 32)).sum(axis=0) % 2).astype(np.float32)[..., None].repeat(3, axis=2)
    for scale, dtype in ((1, np.float32), (255, np.uint8), (65535, np.uint16)):
        small = resize((checker * scale).astype(dtype), 8, 8)
        assert small.dtype == dtype and small.shape == (8, 8, 3)
        # Without antialiasing a checkerboard would alias to black or white; with it, to grey.
        assert np.abs(small[2:6, 2:6].astype(np.float64) / scale - 0.5).max() < 0.02
    assert resize(checker, 45, 45).max() <= 1 and resize(checker, 45, 45).min() >= 0


def test_clip_view_is_pillows_bicubic_of_the_whole_image_normalised():
    image = random_image(30, 50)
    view = clip_view(image, 16)
    assert view.shape == (16, 16, 3) and view.dtype == np.float32 and view.flags.c_contiguous
    for k in range(3):
        plane = Image.fromarray(image[..., k]).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(view[..., k] * CLIP_STD[k] + CLIP_MEAN[k], np.asarray(plane), atol=1e-5)


def pixels_of(views: np.ndarray) -> np.ndarray:
    return views * CLIP_STD + CLIP_MEAN


def test_native_views_are_squares_of_the_image_as_it_is():
    image = random_image(70, 100)
    views = native_views(image, 16, 9)
    assert views.shape == (9, 16, 16, 3) and views.dtype == np.float32 and views.flags.c_contiguous
    starts = [(top, left) for top in (0, 16, 48) for left in (0, 32, 80)]  # multiples of the blocks of JPEG
    for view, (top, left) in zip(pixels_of(views), starts, strict=True):
        np.testing.assert_allclose(view, image[top : top + 16, left : left + 16], atol=1e-6)
    (middle,) = pixels_of(native_views(image, 16, 1))
    np.testing.assert_allclose(middle, image[16:32, 32:48], atol=1e-6)


def test_native_views_of_bytes_are_those_of_floats():
    pixels = (random_image(20, 24) * 255).astype(np.uint8)
    np.testing.assert_allclose(native_views(pixels, 8, 4), native_views(pixels / np.float32(255), 8, 4), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (16, 16)])
def test_native_views_of_images_smaller_than_a_square_are_padded(size):
    image = random_image(*size)
    views = native_views(image, 16, 4)
    assert views.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(views[0], native_views(pad_to(image, 16)[:16, :16], 16, 1)[0])


def test_fine_stripes_are_lost_in_the_resized_view_and_kept_in_the_native_one():
    image = np.full((256, 256, 3), 0.5, np.float32)
    image[:, ::2] += 0.2
    spread = lambda view: pixels_of(view).std()
    assert spread(predictor_view(image, 32, "full", 1)) < 0.02 < 0.09 < spread(predictor_view(image, 32, "native", 4))


PHOTOS = Path(__file__).parents[2] / "data_pipelines" / "photos" / "heldout"


@pytest.mark.parametrize("name", ["brushes_0", "grace_hopper_0", "one_stands_out_1", "picos_de_europa_2"])
@pytest.mark.parametrize("cut", [(700, 700), (224, 224), (150, 100), (40, 300)])
def test_clip_view_of_photographs_is_what_pillow_makes_of_their_bytes(name, cut):
    """Reduced, enlarged, as they are, and one side each; black and white edges overshoot."""
    with Image.open(PHOTOS / f"{name}.jpg") as photo:
        photo = photo.convert("RGB")
        photo = photo.crop((90, 60, min(90 + cut[0], photo.width), min(60 + cut[1], photo.height)))
    expected = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    pixels = np.asarray(photo, np.float32) / 255
    off = lambda image: np.abs((clip_view(image, 224) * CLIP_STD + CLIP_MEAN) * 255 - expected)
    assert off(pixels).max() < 1e-3
    # With more levels than 256 nothing is rounded, neither between the rows and the columns nor at the end.
    finer = np.clip(pixels + np.random.default_rng(0).uniform(-2e-5, 2e-5, pixels.shape), 0, 1).astype(np.float32)
    assert 0.01 < off(finer).mean() < 0.35 or photo.size == (224, 224)
    assert off(finer).max() < 1.2


def test_clip_view_keeps_float_precision():
    level = np.float32(0.123456)
    view = clip_view(np.full((9, 9, 3), level, np.float32), 4)
    np.testing.assert_allclose(view * CLIP_STD + CLIP_MEAN, level, atol=1e-6)  # 8 bits would be off by 1e-3


def test_clip_view_of_bytes_is_that_of_the_same_image_as_floats():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    np.testing.assert_array_equal(clip_view(pixels, 21), clip_view(pixels / np.float32(255), 21))
