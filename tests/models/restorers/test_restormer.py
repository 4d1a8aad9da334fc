"""Restormer against its fixture, and what its U-shape promises to the networks built on it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.restormer import (
    Attention,
    LayerNorm,
    Restormer,
    RestormerConfig,
    TransformerBlock,
    channel_logits,
)
from tests.support import closed_form

TINY = RestormerConfig(dim=8, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 2, 2, 4))
X = np.random.default_rng(0).random((2, 16, 24, 3), np.float32)


@pytest.fixture(scope="module")
def tiny():
    return parameters.initialise(Restormer(TINY))


def test_size():
    net = Restormer(RestormerConfig.full())
    assert parameters.count(net) == 26_126_644
    assert set(parameters.declared(net)) == set(closed_form.state_keys("MiOIR Restormer", "mioir"))


@pytest.mark.slow
def test_equals_the_fixture():
    net = convert.load(Restormer(RestormerConfig.full()), closed_form.state("MiOIR Restormer", "mioir"))
    closed_form.check("MiO Restormer", jax.jit(net)(closed_form.image()))


def test_channels_attend_to_channels():
    """The products divided by the norms are those of normalised maps; a map of zeros gives no NaN."""
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 1, 3, 5, 8), np.float32)
    k[..., 3] = 0
    temperature = np.array([1.5, 0.5], np.float32).reshape(2, 1, 1)
    found = np.asarray(channel_logits(q, k, temperature))
    for head in range(2):
        for i in range(4):
            for j in range(4):
                a, b = (x[0, :, :, 4 * head + c].ravel() for x, c in ((q, i), (k, j)))
                cosine = a @ b / max(np.linalg.norm(a), 1e-12) / max(np.linalg.norm(b), 1e-12)
                assert abs(found[0, head, i, j] - cosine * temperature[head, 0, 0]) < 1e-6


def test_norms():
    x = np.random.default_rng(2).standard_normal((1, 2, 2, 8), np.float32) + 3
    scale = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        parameters.initialise(LayerNorm(8))(x), (x - x.mean(-1, keepdims=True)) * scale, atol=1e-5
    )
    free = parameters.initialise(LayerNorm(8, "bias_free"))
    np.testing.assert_allclose(free(x), x * scale, atol=1e-5)
    assert list(parameters.declared(free)) == ["body.weight"]


@pytest.mark.slow
def test_any_size_is_restored_as_its_padded_image(tiny):
    x = X[:1, :13, :18]
    padded = np.pad(x, ((0, 0), (0, 3), (0, 6), (0, 0)), mode="reflect")
    np.testing.assert_allclose(jax.jit(tiny)(x), jax.jit(tiny)(padded)[:, :13, :18], atol=1e-6)


def test_what_stages_and_skips_hand_on_can_be_changed(tiny):
    """And their sizes are those of an image padded to multiples of eight."""
    seen = []

    def after(stage, features):
        seen.append((stage, features.shape[1:]))
        return jnp.zeros_like(features) if stage == "output" else features

    def skip(level, features):
        seen.append((level, features.shape[1:]))
        return features

    x = X[:, :13, :18]
    # With nothing to add, the image itself comes back.
    np.testing.assert_array_equal(jax.jit(lambda x: tiny(x, after=after, skip=skip))(x), x)
    assert seen == [
        ("latent", (2, 3, 64)),
        (2, (4, 6, 32)),
        ("decoder_level3", (4, 6, 32)),
        (1, (8, 12, 16)),
        ("decoder_level2", (8, 12, 16)),
        (0, (16, 24, 8)),
        ("decoder_level1", (16, 24, 16)),
        ("refinement", (16, 24, 16)),
        ("output", (16, 24, 3)),
    ]


def test_half_precision_stays_close():
    attend = parameters.initialise(Attention(16, 2), seed=3)
    h = np.random.default_rng(3).standard_normal((1, 32, 32, 16), np.float32)
    found = attend(jnp.asarray(h, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    wanted = np.asarray(attend(h))
    assert np.abs(np.asarray(found, np.float32) - wanted).max() < 0.03 * np.abs(wanted).max()


def test_every_block_can_be_recomputed(tiny):
    def recomputed(net):
        return str(jax.make_jaxpr(net)(X)).count("remat")

    again = parameters.initialise(Restormer(replace(TINY, remat=True)))
    assert (recomputed(tiny), recomputed(again)) == (0, 8)


def test_every_parameter_of_a_block_learns():
    block = parameters.initialise(TransformerBlock(8, 2))
    structure, params = parameters.split(block)
    x = np.random.default_rng(4).standard_normal((1, 4, 6, 8), np.float32)
    gradients = jax.jit(jax.grad(lambda p: jnp.square(parameters.merge(structure, p)(x)).sum()))(params)
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match=r"pad_to=12.*multiple of 8"):
        RestormerConfig(pad_to=12)
    with pytest.raises(ValueError, match="16 channels do not divide into 3 heads"):
        replace(TINY, heads=(1, 3, 2, 4))
