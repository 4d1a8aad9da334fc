"""Files of several images are read frame by frame and written with their timing."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mperceiver_jax.image_encoding import encode_tiff
from mperceiver_jax.image_files import levels_of
from mperceiver_jax.image_frames import ANIMATED, frames_in, write_frames
from mperceiver_jax.image_metadata import Metadata, settings_in, with_settings

DURATIONS = (40, 200, 70)


def animation(path, alpha=False):
    """Three frames of one colour each, which every format keeps exactly."""
    frames = [Image.new("RGBA" if alpha else "RGB", (16, 12), colour) for colour in ("#102030", "#f04020", "#20f0e0")]
    if alpha:
        for frame in frames:
            frame.putpixel((0, 0), (0, 0, 0, 0))
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=list(DURATIONS), loop=0, **options)
    return path


@pytest.mark.parametrize("written", ANIMATED)
@pytest.mark.parametrize("read", [".gif", ".png", ".webp"])
def test_every_frame_and_its_time_is_kept(tmp_path, read, written):
    frames = frames_in(animation(tmp_path / f"a{read}"))
    assert (frames.count, frames.pages, frames.durations, frames.loop) == (3, False, DURATIONS, 0)
    images = list(frames)
    described = replace(images[0], metadata=Metadata(xmp=with_settings(b"", "--strength=0.5")))
    write_frames(tmp_path / f"b{written}", [described, *images[1:]], frames, quality=100)
    if written != ".gif":  # It has no place for it.
        assert settings_in(next(iter(frames_in(tmp_path / f"b{written}"))).metadata.xmp) == "--strength=0.5"
    again = frames_in(tmp_path / f"b{written}")
    assert (again.count, again.durations) == (3, DURATIONS)
    if written != ".avif":  # It does not say how often.
        assert again.loop == 0
    for before, after in zip(images, again, strict=True):
        tolerance = 4 / 255 if written == ".avif" else 0
        np.testing.assert_allclose(after.pixels, before.pixels, atol=tolerance)


@pytest.mark.parametrize("written", [".gif", ".png", ".webp"])
def test_transparency_is_kept(tmp_path, written):
    frames = frames_in(animation(tmp_path / "a.png", alpha=True))
    write_frames(tmp_path / f"b{written}", list(frames), frames, quality=100)
    for image in frames_in(tmp_path / f"b{written}"):
        assert image.alpha[0, 0] == 0 and image.alpha[1:].min() == 1


def test_pages_keep_their_sizes_and_depths(tmp_path):
    rng = np.random.default_rng(0)
    pages = [rng.integers(0, 256, (5, 4, 3)).astype(np.uint8), rng.integers(0, 65536, (3, 7, 1)).astype(np.uint16)]
    (tmp_path / "a.tif").write_bytes(encode_tiff(pages))
    frames = frames_in(tmp_path / "a.tif")
    assert (frames.count, frames.pages) == (2, True)
    images = list(frames)
    for image, page in zip(images, pages, strict=True):
        np.testing.assert_array_equal(levels_of(image), page)
    write_frames(tmp_path / "b.tif", images, frames)
    for image, page in zip(frames_in(tmp_path / "b.tif"), pages, strict=True):
        np.testing.assert_array_equal(levels_of(image), page)


def test_what_holds_one_image_has_no_frames_and_other_formats_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert frames_in(tmp_path / "a.png") is None and frames_in(tmp_path / "absent.png") is None
    (tmp_path / "b.gif").write_bytes(b"GIF89a, not really")
    assert frames_in(tmp_path / "b.gif") is None
    frames = frames_in(animation(tmp_path / "c.gif"))
    with pytest.raises(ValueError, match=r"\.jpg does not hold an animation; take --format=png"):
        write_frames(tmp_path / "c.jpg", list(frames), frames)
    (tmp_path / "d.tif").write_bytes(encode_tiff([np.zeros((2, 2, 3), np.uint8)] * 2))
    pages = frames_in(tmp_path / "d.tif")
    with pytest.raises(ValueError, match="does not hold the pages of a TIFF; take --format=tiff"):
        write_frames(tmp_path / "d.png", list(pages), pages)


def test_a_damaged_frame_names_the_file(tmp_path):
    path = animation(tmp_path / "a.png")
    frames = frames_in(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"cannot read frame \d of 3 in .*a\.png"):
        list(frames)
