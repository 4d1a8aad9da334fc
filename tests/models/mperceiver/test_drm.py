"""The detail refinement: its size, its neutral start, what it can express, its condition and its cost."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.drm import DetailRefinement, DRMConfig, shuffle, unshuffle
from mperceiver_jax.models.mperceiver.vae import VAEConfig

TINY = DRMConfig(channels=(4, 6), classes=3, width=8, blocks=(1, 2, 1))


def inputs(config: DRMConfig, side: int = 16, seed: int = 0):
    """(decoded, degraded, taps, probabilities) of one image."""
    rng = np.random.default_rng(seed)
    decoded, degraded = rng.uniform(-1, 1, (2, 1, side, side, 3)).astype(np.float32)
    taps = tuple(rng.standard_normal((1, side >> i, side >> i, c), np.float32) for i, c in enumerate(config.channels))
    return decoded, degraded, taps, np.float32([[0.2, 0.5, 0.3]])


def built(config: DRMConfig, **values):
    """(structure, initial parameters with `values` in their place)."""
    module = DetailRefinement(config)
    structure, _ = parameters.split(module)
    return structure, parameters.initial_values(module, 0) | values


def test_sizes():
    counts = {name: parameters.count(DetailRefinement(getattr(DRMConfig, name)())) for name in ("sd", "base", "small")}
    assert counts == {"sd": 21_710_736, "base": 2_128_536, "small": 1_369_008} and counts["sd"] <= 30e6
    assert DRMConfig.sd().channels == VAEConfig.sd().tap_channels
    assert DRMConfig.base().channels == DRMConfig.small().channels == VAEConfig.small().tap_channels
    assert DRMConfig.sd().multiple == 8


@pytest.mark.parametrize("output", ["decoded", "degraded"])
def test_an_untrained_module_returns_its_input_and_moves_only_its_last_layers(output):
    config = replace(TINY, initial_output=output)
    structure, params = built(config)
    decoded, degraded, taps, p = inputs(config)
    refine = lambda params: parameters.merge(structure, params)(decoded, degraded, taps, p)
    if output == "decoded":
        # To the last bit: the frozen decoder stays as it is.
        assert np.array_equal(refine(params), decoded)
    else:
        np.testing.assert_allclose(refine(params), degraded, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda params: jnp.square(refine(params) - 0.3).mean()))(params)
    moved = {path for path, gradient in gradients.items() if np.any(gradient)}
    assert moved == {f"{layer}.{leaf}" for layer in ("residual", "mask") for leaf in ("weight", "bias")}


def test_the_degraded_image_can_be_left_as_it_is():
    structure, params = built(TINY, **{"mask.bias": jnp.ones(4)})
    decoded, degraded, taps, p = inputs(TINY)
    out = parameters.merge(structure, params)(np.zeros_like(decoded), degraded, taps, p)
    assert np.array_equal(out, degraded)


@pytest.fixture(scope="module")
def acting():
    """A module whose every parameter acts."""
    structure, params = built(TINY)
    rng = np.random.default_rng(3)
    params = {path: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for path, v in params.items()}
    return jax.jit(lambda *given: parameters.merge(structure, params)(*given))


def test_the_degradation_the_taps_and_both_images_count(acting):
    decoded, degraded, taps, p = inputs(TINY)
    plain = acting(decoded, degraded, taps, p)
    others = {
        "probabilities": (decoded, degraded, taps, p[:, ::-1]),
        "finest tap": (decoded, degraded, (taps[0] + 1, taps[1]), p),
        "coarser tap": (decoded, degraded, (taps[0], taps[1] + 1), p),
        "degraded": (decoded, degraded + 0.1, taps, p),
        "decoded": (decoded + 0.1, degraded, taps, p),
    }
    for name, given in others.items():
        assert np.abs(acting(*given) - plain).max() > 1e-3, name


def test_a_soft_condition_lies_between_sure_ones():
    """Scale and shift are linear in the probabilities, so that a mixture of classes is a mixture of their blocks."""
    block = DetailRefinement(TINY).down_blocks[0].blocks[0]
    structure, declared = parameters.split(block)
    rng = np.random.default_rng(1)
    values = {path: rng.standard_normal(v.shape).astype(np.float32) for path, v in declared.items()}
    x = rng.standard_normal((1, 6, 6, 8), np.float32)
    run = lambda p: np.asarray(parameters.merge(structure, values)(x, np.float32([p])))
    np.testing.assert_allclose(
        run([0.25, 0.75, 0]), 0.25 * run([1, 0, 0]) + 0.75 * run([0, 1, 0]), rtol=1e-4, atol=1e-4
    )


def test_the_cost_grows_with_the_area():
    structure, params = built(TINY)

    def flop(side: int) -> float:
        given = jax.eval_shape(lambda: inputs(TINY, side))
        run = jax.jit(lambda params, *given: parameters.merge(structure, params)(*given))
        return run.lower(params, *given).compile().cost_analysis()["flops"] / side**2

    assert flop(256) == pytest.approx(flop(64), rel=0.1)


def test_shuffling_is_undone():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3), np.float32)
    blocks = unshuffle(x)
    assert blocks.shape == (2, 2, 3, 12) and np.array_equal(shuffle(blocks), x)
    np.testing.assert_array_equal(blocks[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))


@pytest.mark.usefixtures("unchecked_shapes")
def test_configurations_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="3 taps do not fit 1 levels"):
        DRMConfig(channels=(4, 4, 4), blocks=(1,))
    with pytest.raises(ValueError, match="initial_output: 'decoded' or 'degraded'"):
        DRMConfig(initial_output="clean")  # type: ignore[arg-type]
