import numpy as np
import pytest

from mperceiver_jax.evaluate.metrics.fid_kid import feature_extractor, frechet_distance, kernel_distance
from mperceiver_jax.models.perceptual.lpips import available


def mean_colour(images):
    """An extractor as a user would write it."""
    return images.mean((1, 2))


def sets(d=4, n=60, m=50):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(0.3, 1.5, (m, d))


def test_frechet_distance_in_closed_form():
    x, y = sets()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x + 2, x) == pytest.approx(4 * 2**2)
    # One set a multiple of the other: covariances commute, so the roots may be subtracted.
    expected = np.sum((2 * x.mean(0) - x.mean(0)) ** 2) + np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(2 * x, x) == pytest.approx(expected)
    # The matrix root itself.
    linalg = pytest.importorskip("scipy.linalg")
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x + cov_y - 2 * linalg.sqrtm(cov_x @ cov_y).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_is_no_obstacle():
    x, y = sets(d=30, n=8, m=9)
    assert np.isfinite(frechet_distance(x, y)) and frechet_distance(x, x) == pytest.approx(0, abs=1e-4)


def test_kernel_distance_is_the_unbiased_discrepancy():
    x, y = sets(n=20, m=20)
    kernel = lambda a, b: (a @ b / 4 + 1) ** 3
    pairs = [(i, j) for i in range(20) for j in range(20)]
    within = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j])
    expected = within - 2 * np.mean([kernel(x[i], y[j]) for i, j in pairs])
    assert kernel_distance(x, y) == (pytest.approx(expected), 0)
    mean, spread = kernel_distance(x, y, subsets=50, size=10)
    assert spread > 0 and mean == pytest.approx(expected, abs=5 * spread / 50**0.5)
    assert kernel_distance(x, y, subsets=50, size=10) == (mean, spread)


def test_extractors_of_the_user(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 9, 3), np.uint8)
    expected = images.mean((1, 2))
    np.testing.assert_allclose(feature_extractor(f"{__name__}:mean_colour")(images), expected)
    with pytest.raises(ValueError, match="no_such"):
        feature_extractor(f"{__name__}:no_such")
    with pytest.raises(ValueError, match="vgg16"):
        feature_extractor("inception")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        feature_extractor(str(tmp_path / "none.pt"))
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def forward(self, x, return_features: bool = False):
            features = x.float().mean((2, 3))
            return features if return_features else features[:, :1]

    torch.jit.script(Network()).save(tmp_path / "net.pt")
    np.testing.assert_allclose(feature_extractor(str(tmp_path / "net.pt"))(images), expected, rtol=1e-6)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="TorchScript"):
        feature_extractor(str(tmp_path / "text.pt"))


@pytest.mark.skipif(not available(), reason="needs the extra [lpips]")
def test_the_features_that_a_package_ships():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 32, 32, 3), np.uint8)
    features = feature_extractor("vgg16")(images)
    assert features.shape == (2, 512) and features.min() >= 0 and np.abs(features[0] - features[1]).max() > 0


def test_sets_that_cannot_be_compared_are_refused():
    x, y = sets()
    for measure in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="two sets"):
            measure(x, y[:1])
        with pytest.raises(ValueError, match="two sets"):
            measure(x, y[:, :2])
