from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from scipy.linalg import pinvh

from data_pipelines.images import decode_image
from data_pipelines.sources.folders import bundled_photos
from mperceiver_jax.evaluate.metrics import niqe as module
from mperceiver_jax.evaluate.metrics.niqe import FEATURES, PristineModel, niqe, niqe_features, read_niqe_model


def photo(name, height=288, width=384):
    return decode_image(Path(bundled_photos("heldout")) / f"{name}.jpg")[:height, :width] / np.float32(255)


def pristine():
    """A model of pristine photographs, from a bundled one."""
    features = niqe_features(np.rint(255 * photo("picos_de_europa_0", 480, 480)[..., 1]))
    features = features[np.isfinite(features).all(1)]
    return PristineModel(features.mean(0), np.cov(features, rowvar=False))


def test_noise_and_blur_are_less_natural():
    image, model = photo("picos_de_europa_1"), pristine()
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 0.1, image.shape), 0, 1)
    blurred = np.mean([np.roll(image, (i, j), (0, 1)) for i in range(5) for j in range(5)], 0)
    clean = niqe(image, model)
    assert clean < niqe(noisy, model) and clean < niqe(blurred, model)
    # Only whole blocks count, from the top left.
    assert niqe(photo("picos_de_europa_1", 300, 400), model) == pytest.approx(clean, rel=0.2)


@pytest.mark.parametrize("name", ["picos_de_europa_1", "picos_de_europa_0"])
def test_few_blocks_have_a_figure_though_their_covariance_is_singular(name):
    image, model = photo(name, 192, 192), pristine()
    features = niqe_features(np.rint(np.rint(255.0 * image) @ module._GREY))
    covariance = (np.cov(features, rowvar=False) + model.covariance) / 2
    assert np.linalg.matrix_rank(covariance, hermitian=True) < FEATURES
    difference = features.mean(0) - model.mean
    assert niqe(image, model) == pytest.approx(np.sqrt(difference @ pinvh(covariance) @ difference), rel=1e-6)


@pytest.mark.parametrize("shape, draw", [(2.0, "normal"), (1.0, "laplace")])
def test_moments_find_the_shape_of_a_distribution(shape, draw):
    values = getattr(np.random.default_rng(0), draw)(0, 3, 400_000)
    found, left, right = module._asymmetric_gaussian(values)
    assert found == pytest.approx(shape, rel=0.02)
    # Scales in the generalised Gaussian's own terms: sqrt(2) sigma of a normal one, the decay of Laplace's.
    assert left == pytest.approx({2.0: 3 * 2**0.5, 1.0: 3}[shape], rel=0.02) == pytest.approx(right, rel=0.02)


def test_halving_is_matlabs_bicubic_with_antialiasing():
    # Eight taps, the cubic (a = -1/2) stretched by two; an edge shows their running sum.
    taps = np.array([-0.01171875, -0.03515625, 0.11328125, 0.43359375])
    edge = np.repeat([[0.0, 1.0]], 8, 1).repeat(16, 0)
    row = module._halved(edge)[4]
    np.testing.assert_allclose(row[:4], [0, 0, taps[0], taps[:3].sum()], atol=1e-12)
    np.testing.assert_allclose(row + row[::-1], 1)
    np.testing.assert_allclose(module._halved(np.ones((8, 8))), np.ones((4, 4)))


@pytest.mark.parametrize("names", module._NAMES)
def test_models_are_read_as_they_circulate(tmp_path, names):
    mean, covariance = np.arange(FEATURES)[None] / 7, np.eye(FEATURES)
    stored = dict(zip(names, (mean, covariance), strict=True))
    savemat(tmp_path / "model.mat", stored)
    np.savez(tmp_path / "model.npz", **stored)
    for path in tmp_path.iterdir():
        model = read_niqe_model(path)
        np.testing.assert_array_equal(model.mean, mean[0])
        np.testing.assert_array_equal(model.covariance, covariance)


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="pristine"):
        read_niqe_model(tmp_path / "none.mat")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(ValueError, match="mu_prisparam"):
        read_niqe_model(tmp_path / "other.npz")
    for name in ("text.mat", "text.npz"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(ValueError, match="36 features"):
            read_niqe_model(tmp_path / name)
    model = PristineModel(np.zeros(FEATURES), np.eye(FEATURES))
    with pytest.raises(ValueError, match="192 pixels"):
        niqe(np.zeros((191, 400, 3)), model)
    with pytest.raises(ValueError, match="no texture"):
        niqe(np.zeros((192, 192, 3)), model)
