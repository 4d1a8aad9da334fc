import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.training import losses
from tests.support.parity_fixtures import fixture

torch = pytest.importorskip("torch")


def test_focal_loss_and_gradient_equal_the_release():
    release = fixture("10_focal_loss")
    logits, labels, alpha = (jnp.asarray(release.inputs[name]) for name in ("logits", "target", "alpha"))
    value, gradient = jax.value_and_grad(losses.focal_loss)(logits, labels, 2.0, alpha)
    release.check("loss_mean", value[None])
    release.check("grad_logits_of_mean", gradient)
    rows = [losses.focal_loss(logits[i : i + 1], labels[i : i + 1], 2.0, alpha) for i in range(4)]
    np.testing.assert_allclose(rows, release.outputs["loss_none"][:4], rtol=1e-5)


def test_focal_loss_without_focus_is_cross_entropy():
    logits = jax.random.normal(jax.random.key(0), (6, 9)) * 3
    labels = jnp.arange(6)
    np.testing.assert_allclose(
        losses.focal_loss(logits, labels, gamma=0.0), losses.cross_entropy(logits, labels), rtol=1e-6
    )
    by_hand = -np.log(np.exp(logits)[range(6), range(6)] / np.exp(logits).sum(-1)).mean()
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), by_hand, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_is_finite_for_saturated_logits(gamma):
    logits = jnp.array([[200.0, 0, 0], [-200.0, 0, 0]])
    gradient = jax.grad(losses.focal_loss)(logits, jnp.array([0, 0]), gamma)
    assert np.isfinite(gradient).all()
    assert float(gradient[1, 0]) == pytest.approx(-0.5)


def test_pixel_losses_compute_in_float32():
    prediction = jnp.full((1, 64, 64, 3), 0.1, jnp.bfloat16)
    target = jnp.full((1, 64, 64, 3), 0.3, jnp.bfloat16)
    difference = float(jnp.bfloat16(0.3)) - float(jnp.bfloat16(0.1))
    assert float(losses.mean_squared_error(prediction, target)) == pytest.approx(difference**2, rel=1e-5)
    assert float(losses.l1(prediction, target)) == pytest.approx(difference, rel=1e-5)
    assert losses.l1(prediction, target).dtype == jnp.float32


def test_kl_vanishes_at_the_prior_and_equals_torch_elsewhere():
    torch = pytest.importorskip("torch")
    zeros = jnp.zeros((2, 3, 3, 4))
    assert float(losses.kl_to_standard_normal(zeros, zeros)) == 0
    mean, logvar = jax.random.normal(jax.random.key(0), (2, 2, 3, 3, 4))
    normal = torch.distributions.Normal
    posterior = normal(torch.from_numpy(np.array(mean)), torch.from_numpy(np.exp(np.array(logvar) / 2)))
    theirs = torch.distributions.kl_divergence(posterior, normal(0.0, 1.0))
    expected = theirs.sum((1, 2, 3)).mean().item()
    assert float(losses.kl_to_standard_normal(mean, logvar)) == pytest.approx(expected, rel=1e-5)


def test_hinge_losses():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.5])
    assert float(losses.hinge_discriminator_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.75))
    assert float(losses.hinge_generator_loss(fake)) == pytest.approx(1.25)


def test_adaptive_weight_is_the_clipped_ratio_of_norms_and_a_constant():
    g = jnp.array([[3.0, 4.0]])
    assert float(losses.adaptive_gan_weight(g, 2 * g)) == pytest.approx(5 / 10.0001)
    assert float(losses.adaptive_gan_weight(g, 0 * g)) == pytest.approx(1e4)  # 5 / 1e-4 is clipped
    assert np.all(jax.grad(lambda x: losses.adaptive_gan_weight(x, g))(g) == 0)


def pair_of_images() -> tuple[np.ndarray, np.ndarray]:
    """Differences from nearly 0 to above 1, for every branch of a loss, of oblong images, which tell axes apart."""
    rng = np.random.default_rng(0)
    target = rng.random((2, 8, 6, 3), np.float32)
    difference = rng.normal(0, 1.0, target.shape).astype(np.float32)
    difference[0, 0] *= 1e-3
    return target + difference, target


def check(loss, formula, prediction, target):
    """Value and gradient against a formula in torch."""
    theirs = torch.tensor(prediction, dtype=torch.float64, requires_grad=True)
    expected = formula(theirs, torch.tensor(target, dtype=torch.float64))
    expected.backward()
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(prediction), jnp.asarray(target))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-4, atol=1e-6 * float(np.abs(gradient).max()))


def test_smooth_l1_is_pytorchs():
    prediction, target = pair_of_images()
    assert np.abs(prediction - target).max() > 1.5
    check(losses.smooth_l1, torch.nn.SmoothL1Loss(), prediction, target)


def test_the_spectral_distance_is_the_mean_modulus_of_the_full_spectrum():
    """Not normalised, over height and width of every channel; a zero difference has a gradient of zero."""
    prediction, target = pair_of_images()
    formula = lambda x, y: (torch.fft.fft2(x, dim=(1, 2)) - torch.fft.fft2(y, dim=(1, 2))).abs().mean()
    check(losses.spectral_distance, formula, prediction, target)
    assert not np.asarray(jax.grad(losses.spectral_distance)(jnp.asarray(target), jnp.asarray(target))).any()


def test_charbonnier_is_the_root_of_the_squared_difference_and_a_millionth():
    prediction, target = pair_of_images()
    difference = prediction.astype(np.float64) - target
    roots = np.sqrt(difference**2 + 1e-6)
    value, gradient = jax.value_and_grad(losses.charbonnier)(jnp.asarray(prediction), jnp.asarray(target))
    np.testing.assert_allclose(value, roots.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, difference / roots / difference.size, rtol=1e-3, atol=1e-7)
