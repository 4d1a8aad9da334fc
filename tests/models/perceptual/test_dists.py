import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models.perceptual import dists as module
from mperceiver_jax.models.perceptual.dists import available, dists, load_dists
from tests.models.perceptual.test_lpips import photo

needs_weights = pytest.mark.skipif(not available(), reason="needs the extra [dists]")


@pytest.fixture(scope="module")
def params():
    return load_dists()


def images():
    x = (jnp.repeat(photo(48), 3, 0) + 1) / 2
    noise = jnp.array([0, 0.02, 0.3])[:, None, None, None] * jax.random.normal(jax.random.key(0), x.shape)
    return jnp.clip(x + noise, 0, 1), x


@needs_weights
def test_distances_equal_those_of_the_package_that_ships_the_weights(params, monkeypatch):
    """Its module runs on torchvision's VGG-16; here on one that is put together from the same weights."""
    torch = pytest.importorskip("torch")

    def vgg16(pretrained):
        layers, channels = [], 3
        for index, width in enumerate([64, 64, 128, 128, 256, 256, 256, *[512] * 6]):
            layers += [torch.nn.MaxPool2d(2, 2)] * (index in (2, 4, 7, 10))
            convolution = torch.nn.Conv2d(channels, width, 3, padding=1)
            kernel, bias = params[f"vgg.{index}.weight"], params[f"vgg.{index}.bias"]
            convolution.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
            convolution.bias.data = torch.tensor(bias)
            layers += [convolution, torch.nn.ReLU()]
            channels = width
        return types.SimpleNamespace(features=torch.nn.Sequential(*layers))

    torchvision = types.SimpleNamespace(models=types.SimpleNamespace(vgg16=vgg16), transforms=None)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    theirs = pytest.importorskip("DISTS_pytorch.DISTS_pt").DISTS(load_weights=False).eval()
    for name in ("alpha", "beta"):
        getattr(theirs, name).data = torch.tensor(params[name])[None, :, None, None]
    x, y = images()
    with torch.no_grad():
        expected = theirs(*(torch.tensor(np.array(side)).permute(0, 3, 1, 2) for side in (x, y)))
    found = jax.jit(dists)(params, x, y)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert abs(found[0]) < 1e-6 < found[1] < found[2]  # equal images first


@needs_weights
def test_weights_sum_to_one(params):
    assert params["alpha"].sum() + params["beta"].sum() == pytest.approx(1, abs=1e-5)
    assert params["alpha"].shape == params["beta"].shape == (1475,)


@pytest.mark.usefixtures("unchecked_shapes")
def test_unfit_images_and_missing_packages_are_named(monkeypatch):
    x = jnp.zeros((1, 15, 64, 3))
    with pytest.raises(ValueError, match="16 pixels"):
        dists({}, x, x)
    with pytest.raises(ValueError, match="one shape"):
        dists({}, x, x[:, 1:])
    monkeypatch.setattr(module, "load_lpips", lambda net: {})
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert not available()
    with pytest.raises(ModuleNotFoundError, match=r"mperceiver-jax\[dists\]"):
        load_dists()
