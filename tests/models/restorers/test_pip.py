"""PIP against the release's names, shapes and figures; its parts against plain loops; other backbones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.layers import Conv
from mperceiver_jax.models.restorers.condition_weights import weights_of_labels
from mperceiver_jax.models.restorers.nafnet import NAFNet, NAFNetConfig
from mperceiver_jax.models.restorers.pip import PIP, PIPConfig, PromptModule
from mperceiver_jax.models.restorers.pip_interactions import INTERACTIONS, TopMAttention, fit_channels
from mperceiver_jax.models.restorers.restormer import RestormerConfig
from tests.support import closed_form

COUNTS = {"top_m": 27_429_510, "cross": 27_429_498, "convgate": 28_540_390, "gate": 30_949_832}
DEAD = 112_896
TINY = PIPConfig(
    backbone=RestormerConfig(dim=8, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 2, 2, 4), narrow_latent=True),
    widths=(16, 16, 24),
    sides=(8, 4, 2),
)


class OneSkip(nnx.Module):
    """The smallest backbone there can be."""

    skip_channels = (8,)

    def __init__(self):
        self.first = Conv(3, 8)
        self.last = Conv(8, 3)

    def __call__(self, x, *, skip):
        return x + self.last(skip(0, self.first(x)))


ONE_SKIP = PIPConfig(widths=(16,), sides=(4,), classes=3)


def one_skip(**changes) -> PIP:
    return parameters.initialise(PIP(replace(ONE_SKIP, **changes), OneSkip()))


@pytest.mark.parametrize("interaction", COUNTS)
def test_counts_are_the_releases(interaction):
    live = parameters.count(PIP(PIPConfig.release(interaction)))
    assert live + DEAD == COUNTS[interaction]


def test_keys_and_shapes_are_the_releases():
    assert closed_form.shapes(PIP(PIPConfig.release())) == closed_form.state_keys("PIP", "pip")


@pytest.mark.slow
def test_figures_are_the_releases():
    module = PIP(PIPConfig.release())
    state = closed_form.state("PIP", "pip")
    convert.load(module, state)
    again = convert.dump(module)
    assert all(np.array_equal(again[key], state[key]) for key in state)
    structure, params = parameters.split(module)
    weights = weights_of_labels(np.array([0, 3]), 5)
    run = jax.jit(lambda params, x: parameters.merge(structure, params)(x, weights))
    closed_form.check("PIP topm b2 classes[0,3]", run(params, closed_form.image(2)))


def test_figures_have_not_changed():
    """The tiny network as it was when the full one had just been compared with the release."""
    module = PIP(TINY)
    structure, _ = parameters.split(module)
    image = closed_form.image()[:, :13, :22]
    weights = weights_of_labels(np.array([3]), 5)
    run = jax.jit(lambda params: parameters.merge(structure, params)(image, weights))
    found = np.asarray(run(closed_form.values(module)), np.float64)
    figures = (found.mean(), found.std(), found[0, 0, 0, 0], found[0, -1, -1, 2])
    np.testing.assert_allclose(figures, (0.758484, 1.783546, 1.352138, 2.873252), atol=1e-4)


def test_dead_tensors_are_kept_and_zeros_without_any():
    config = replace(PIPConfig.release(), backbone=RestormerConfig(blocks=(0, 0, 0, 0), narrow_latent=True))
    module = parameters.initialise(PIP(config))
    state = convert.dump(module)
    key = "reduce_noise_channel_3.weight"
    assert state[key].shape == (192, 448, 1, 1) and not state[key].any()
    changed = state | {key: state[key] + 1}
    again = convert.dump(convert.load(PIP(config), changed))
    assert all(np.array_equal(again[name], changed[name]) for name in changed)


def test_top_m_keeps_the_largest_entries_of_each_row():
    attention = TopMAttention(14, 2)
    parameters.assign(attention, {f"attn{i}": np.array([f], np.float32) for i, f in enumerate((0.1, 0.2, 0.3, 0.4), 1)})
    logits = np.random.default_rng(0).standard_normal((2, 2, 7, 7)).astype(np.float32)
    logits[0, 0, 0] = 1.0
    wanted = np.zeros_like(logits)
    for at in np.ndindex(logits.shape[:-1]):
        for factor, kept in ((0.1, 3), (0.2, 4), (0.3, 5), (0.4, 5)):
            order = np.argsort(-logits[at], kind="stable")[:kept]
            e = np.exp(logits[at][order])
            wanted[(*at, order)] += factor * e / e.sum()
    np.testing.assert_allclose(attention.weights(jnp.asarray(logits)), wanted, atol=1e-6)


def test_channels_are_filled_with_zeros_or_cut():
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(fit_channels(x, 5), np.concatenate([x, np.zeros((1, 1, 2, 2))], -1))
    np.testing.assert_array_equal(fit_channels(x, 2), x[..., :2])


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_every_interaction_works_and_the_class_matters(interaction):
    module = one_skip(interaction=interaction)
    image = np.random.default_rng(0).random((1, 5, 7, 3), np.float32)
    run = jax.jit(lambda weights: module(image, weights))
    one, other = (np.asarray(run(weights_of_labels(np.array([label]), 3))) for label in (0, 2))
    assert one.shape == image.shape
    assert np.abs(one - other).max() > 1e-5


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_computes_in_the_dtype_of_its_image(interaction):
    structure, params = parameters.split(PIP(replace(TINY, interaction=interaction)))
    image = jax.ShapeDtypeStruct((2, 13, 9, 3), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    found = jax.eval_shape(lambda p, x, w: parameters.merge(structure, p)(x, w), params, image, weights)
    assert (found.shape, found.dtype) == (image.shape, image.dtype)


def test_vectors_of_classes_are_averaged_by_weight():
    prompt = parameters.initialise(PromptModule(3, 8, 4, 2.66))
    features = np.random.default_rng(0).random((1, 4, 4, 8), np.float32)
    vectors = np.asarray(prompt.detask_prompt_param[...])
    seen = []
    prompt.LGM = lambda basic, semantic: seen.append(semantic) or jnp.broadcast_to(basic, semantic.shape)
    prompt(features, np.array([[0.5, 0.0, 0.5]], np.float32))
    wanted = features * (vectors[0, 0] + vectors[0, 2])[:, 0, 0] / 2 / 3
    np.testing.assert_allclose(seen[0], wanted, atol=1e-6)


def test_every_parameter_learns():
    module = one_skip()
    structure, params = parameters.split(module)
    image = np.random.default_rng(0).random((3, 5, 7, 3), np.float32)
    weights = weights_of_labels(np.arange(3), 3)
    loss = lambda params: (parameters.merge(structure, params)(image, weights) ** 2).mean()
    gradients = jax.jit(jax.grad(loss))(params)
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []


def test_the_angle_penalty_is_the_sum_of_positive_cosines():
    module = one_skip()
    vectors = np.random.default_rng(0).random((3, 16), np.float32) - np.float32(0.3)
    parameters.assign(module, {"prompt1.detask_prompt_param": vectors[None, :, :, None, None]})
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [max(0.0, float(unit[i] @ unit[j])) for i in range(3) for j in range(i + 1, 3)]
    assert sum(pairs) > 0.1
    assert float(module.angle_penalty()) == pytest.approx(0.01 * sum(pairs), rel=1e-5)


def test_nafnet_takes_prompts_at_any_size():
    config = PIPConfig(
        backbone=NAFNetConfig(width=6, encoder=(1, 1), middle=1, decoder=(1, 1)),
        widths=(8, 8),
        sides=(4, 2),
        classes=3,
    )
    module = PIP(config)
    values = parameters.initial_values(module, 0, lambda path, value: value)
    for path in values:
        if path.endswith((".beta", ".gamma")):
            values[path] = np.full_like(values[path], 0.5)
    structure, _ = parameters.split(module)
    image = np.random.default_rng(0).random((1, 7, 5, 3), np.float32)
    run = jax.jit(lambda weights: parameters.merge(structure, values)(image, weights))
    one, other = (run(weights_of_labels(np.array([label]), 3)) for label in (0, 2))
    assert one.shape == image.shape
    assert np.abs(one - other).max() > 1e-5


def test_sizes_of_nafnet():
    assert parameters.count(NAFNet(NAFNetConfig.full())) == pytest.approx(17.1e6, rel=1e-3)
    assert PIP(PIPConfig.nafnet()).backbone.skip_channels == (32, 64, 128, 256)
    with pytest.raises(ValueError, match="differ in levels"):
        NAFNetConfig(encoder=(1, 1), decoder=(1,))


def test_the_small_configuration_is_small():
    assert parameters.count(PIP(PIPConfig.small())) < 1_500_000


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"2 widths for the 3 skip connections of NarrowRestormer"):
        PIP(replace(TINY, widths=(8, 8), sides=(4, 4)))
    with pytest.raises(ValueError, match="differ in number"):
        PIPConfig(widths=(8, 8))
    with pytest.raises(ValueError, match="'promptir' given"):
        PIPConfig(interaction="promptir")
    with pytest.raises(ValueError, match="narrow_latent=True"):
        PIP(PIPConfig(backbone=RestormerConfig()))
    with pytest.raises(ValueError, match="prompts of 10 channels do not divide into 4 heads"):
        one_skip(widths=(10,))
    with pytest.raises(ValueError, match="of 4 channels in 4 heads the largest half is none"):
        one_skip(widths=(4,))
    with pytest.raises(ValueError, match="8 \\+ 10 channels do not divide into 4 heads"):
        one_skip(widths=(10,), interaction="gate")
    with pytest.raises(ValueError, match=r"weights of the classes are \(1, 5\), expected \(2, 3\)"):
        one_skip()(np.zeros((2, 4, 4, 3), np.float32), np.zeros((1, 5), np.float32))
