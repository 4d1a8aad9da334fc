"""The detail refinement: its formula, its silent start, and its local pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.drm import DetailRefinement, DRMConfig, spatial_mean
from mperceiver_jax.models.mperceiver.vae import AutoencoderKL, VAEConfig

TINY = DRMConfig(channels=(4, 6), classes=3)


def test_size_per_tap_and_whole():
    drm = DetailRefinement(DRMConfig.sd())
    assert [parameters.count(tap) for tap in drm.taps] == [292_352, 1_141_760, 4_511_744]
    assert parameters.count(drm) == 5_945_856
    assert DRMConfig.sd().channels == VAEConfig.sd().tap_channels
    assert DRMConfig.small().channels == VAEConfig.small().tap_channels


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_untrained_module_changes_no_bit_and_moves_only_its_output_layers(gain):
    config = VAEConfig(latent_channels=2, base_channels=4, channel_mult=(1, 2), num_res_blocks=1, groups=2)
    vae = parameters.initialise(AutoencoderKL(config))
    structure, params = parameters.split(
        parameters.initialise(DetailRefinement(DRMConfig(channels=config.tap_channels, classes=3, gain=gain)))
    )
    rng = np.random.default_rng(0)
    taps = [rng.standard_normal((1, 8 >> i, 8 >> i, c), np.float32) for i, c in enumerate(config.tap_channels)]
    z = rng.standard_normal((1, 4, 4, 2), np.float32)
    p = np.asarray([[0.2, 0.5, 0.3]], np.float32)

    def decode(params, z):
        drm = parameters.merge(structure, params)
        return vae.decode(z, lambda i, d: drm(i, d, taps[i], p))

    # Uncompiled: two compiled programs may fuse, and hence round, differently.
    assert np.array_equal(decode(params, z), vae.decode(z))
    target = rng.standard_normal((1, 8, 8, 3), np.float32)
    gradients = jax.jit(jax.grad(lambda params: jnp.square(decode(params, z) - target).mean()))(params)
    moved = {path for path, gradient in gradients.items() if np.any(gradient)}
    assert moved == {f"taps.0.out.{leaf}" for leaf in ("weight", "bias")}


def test_blocks_with_a_gain_act_from_the_start_and_with_an_attention_of_one():
    x = np.random.default_rng(5).standard_normal((1, 6, 6, 4), np.float32)
    p = np.full((1, 3), 1 / 3, np.float32)
    silent, acting = (
        parameters.initialise(DetailRefinement(DRMConfig(channels=(4,), classes=3, gain=gain))).taps[0].blocks[0]
        for gain in (0.0, 0.5)
    )
    assert np.array_equal(silent(x, p), x)
    assert not np.allclose(acting(x, p), x, atol=0.01)
    np.testing.assert_array_equal(acting.sca(x), np.ones_like(x))


@pytest.mark.parametrize("tap", [0, 1])
def test_equals_the_formula_written_in_torch(tap):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    drm = DetailRefinement(TINY)
    rng = np.random.default_rng(1)
    values = {path: rng.standard_normal(v.get_value().shape, np.float32) * 0.4
              for path, v in parameters.declared(drm).items()}  # fmt: skip
    parameters.assign(drm, values)
    c = TINY.channels[tap]
    d, e = (rng.standard_normal((2, 5, 7, c), np.float32) for _ in range(2))
    p = rng.dirichlet([1.0] * 3, 2).astype(np.float32)

    w = {path.removeprefix(f"taps.{tap}."): torch.from_numpy(value) for path, value in values.items()}

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"].permute(3, 2, 0, 1), w[f"{name}.bias"], **options)

    def norm(x, name):
        y = F.layer_norm(x.permute(0, 2, 3, 1), (c,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)
        return y.permute(0, 3, 1, 2)

    def per_channel(v):
        return v.reshape(-1, v.shape[-1], 1, 1)

    td, te = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (d, e))
    x = conv(torch.cat([td, te], 1), "fuse")
    for n in ("blocks.0", "blocks.1"):
        s, b = (torch.from_numpy(p) @ w[f"{n}.degradation.weight"] + w[f"{n}.degradation.bias"]).chunk(2, 1)
        y = norm(x, f"{n}.norm1") * (1 + per_channel(s)) + per_channel(b)
        y = conv(conv(y, f"{n}.conv1"), f"{n}.depthwise", padding=1, groups=2 * c)
        y = y[:, :c] * y[:, c:]
        y = y * conv(y.mean((2, 3), keepdim=True), f"{n}.sca")
        x = x + per_channel(w[f"{n}.beta"]) * conv(y, f"{n}.conv2")
        y = conv(norm(x, f"{n}.norm2"), f"{n}.conv3")
        x = x + per_channel(w[f"{n}.gamma"]) * conv(y[:, :c] * y[:, c:], f"{n}.conv4")
    expected = (td + conv(x, "out")).permute(0, 2, 3, 1).numpy()

    found = jax.jit(lambda d, e, p: drm(tap, d, e, p))(d, e, p)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_local_mean_is_over_a_whole_window_near_each_pixel():
    x = np.random.default_rng(2).standard_normal((1, 6, 9, 2), np.float32)
    window = 4
    found = np.asarray(spatial_mean(jnp.asarray(x), window))
    for i in range(6):
        for j in range(9):
            top, left = (min(max(k - window // 2, 0), n - window) for k, n in ((i, 6), (j, 9)))
            expected = x[0, top : top + window, left : left + window].mean((0, 1))
            np.testing.assert_allclose(found[0, i, j], expected, atol=1e-5)


def test_local_mean_equals_the_global_one_on_maps_no_larger_than_the_window():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 6, 4, 2), np.float32))
    assert np.array_equal(spatial_mean(x, 6), spatial_mean(x))
    # One side longer than the window: the other is still averaged as a whole.
    assert spatial_mean(x, 5).shape == (2, 6, 1, 2)


def test_local_pooling_uses_the_window_of_each_tap():
    local = DetailRefinement(DRMConfig(channels=(4, 6), classes=3, sca_pool="local", sca_window=16))
    assert [tap.blocks[1].window for tap in local.taps] == [16, 8]
    drm = DetailRefinement(TINY)
    values = parameters.initial_values(drm, 0)
    rng = np.random.default_rng(4)
    values |= {path: rng.standard_normal(v.shape, np.float32) for path, v in values.items() if not np.any(v)}
    parameters.assign(drm, values)
    parameters.assign(local, values)
    p = np.full((1, 3), 1 / 3, np.float32)
    for side, same in ((8, True), (12, False)):
        d, e = (rng.standard_normal((1, side, side, 6), np.float32) for _ in range(2))
        assert np.array_equal(drm(1, d, e, p), local(1, d, e, p)) == same


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="'global', 'local'"):
        DRMConfig(sca_pool="windowed")
