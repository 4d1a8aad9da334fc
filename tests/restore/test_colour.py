import numpy as np
import pytest

from mperceiver_jax.image_files import quantise
from mperceiver_jax.restore.colour import adain, wavelet_fix, wavelet_split
from tests.support.parity_fixtures import fixture, nhwc


def test_adain_equals_the_release():
    release = fixture("09_colour_fix")
    content = nhwc(release.inputs["content"])
    release.check("adain", adain(content, nhwc(release.inputs["style"])))
    release.check("adain_other_size", adain(content, nhwc(release.inputs["other_size_style"])))


def test_wavelet_fix_equals_the_release():
    release = fixture("09_colour_fix")
    content = nhwc(release.inputs["content"])
    high, low = wavelet_split(content)
    release.check("content_high", high)
    release.check("content_low", low)
    release.check("wavelet", wavelet_fix(content, nhwc(release.inputs["style"])))


@pytest.mark.parametrize("name, fix", [("adain", adain), ("wavelet", wavelet_fix)])
def test_whole_path_on_8_bit_images_equals_the_release(name, fix):
    release = fixture("09_colour_fix")
    content, style = (release.inputs[f"{key}_uint8"].astype(np.float32) / 255 for key in ("content", "style"))
    ours = quantise(fix(content, style), 8, "truncate").astype(int)
    expected = release.outputs[f"{name}_uint8"].astype(int)
    assert np.abs(ours - expected).max() <= 1
    assert (ours == expected).mean() > 0.99


def test_one_pixel_images_work_and_unequal_ones_are_refused():
    one = np.full((1, 1, 3), 0.25, np.float32)
    np.testing.assert_allclose(adain(one, one + 0.5), one + 0.5, atol=1e-6)
    np.testing.assert_allclose(wavelet_fix(one, one + 0.5), one + 0.5, atol=1e-6)
    with pytest.raises(ValueError, match="wavelet_fix"):
        wavelet_fix(one, np.zeros((2, 1, 3)))
    with pytest.raises(ValueError, match="adain"):
        adain(one, np.zeros((1, 1, 4)))
