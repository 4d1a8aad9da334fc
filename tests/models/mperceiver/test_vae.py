"""The autoencoder against the release's fixtures and diffusers."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.diffusers.components import vae_config
from mperceiver_jax.convert.keymaps.keymap import KeyMap
from mperceiver_jax.convert.keymaps.registry import LAYOUTS
from mperceiver_jax.models import parameters
from mperceiver_jax.models.layers import ResnetBlock
from mperceiver_jax.models.mperceiver.vae import EPS, AutoencoderKL, SpatialAttention, VAEConfig, posterior
from tests.support.parity_fixtures import fixture, nchw, nhwc

FIXTURES = {
    "05_vae": VAEConfig(base_channels=32, channel_mult=(1, 2, 1), num_res_blocks=1),
    "05b_vae_sd_layout": VAEConfig(base_channels=32),
}
TINY = VAEConfig(latent_channels=3, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, groups=4)


def test_size_of_stable_diffusions_autoencoder():
    vae = AutoencoderKL(VAEConfig.sd())
    assert parameters.count(vae) == 83_653_863
    assert len(parameters.declared(vae)) == 248
    assert parameters.count(vae.encoder) == 34_163_592
    assert parameters.count(vae.decoder) == 49_490_179
    assert parameters.count(vae.quant_conv) + parameters.count(vae.post_quant_conv) == 92
    assert (vae.config.factor, vae.config.tap_channels) == (8, (128, 256, 512))


def test_blocks_equal_the_fixture(monkeypatch):
    facts = fixture("00_blocks")
    names = LAYOUTS["AutoencoderKL", "release"](AutoencoderKL(TINY))
    in_block = [(pattern.replace("attn_1\\.", "^"), new.replace("attn_1.", "")) for pattern, new in names.inner]
    monkeypatch.setitem(LAYOUTS, ("SpatialAttention", "part"), lambda _: KeyMap(inner=in_block, one_by_one=("^to_", 2)))
    monkeypatch.setitem(LAYOUTS, ("ResnetBlock", "part"), lambda _: KeyMap())
    attend = convert.load(SpatialAttention(32, 32), facts.substate("vae_attn_block."), layout="part")
    facts.check("vae_attn_block", attend(nhwc(facts.inputs["map"])))
    resnet = ResnetBlock(32, 32, time_width=None, eps=EPS)
    convert.load(resnet, facts.substate("vae_res_block."), layout="part")
    facts.check("vae_res_block", resnet(nhwc(facts.inputs["small_map"])))


def test_posterior_clamps_and_samples():
    facts = fixture("00_blocks")
    found = posterior(nhwc(facts.inputs["moments"]))
    facts.check("posterior_mean", found.mean)
    facts.check("posterior_logvar", found.logvar)
    facts.check("posterior_sample", found.sample(nhwc(facts.inputs["posterior_noise"])))


@pytest.mark.parametrize("stem", FIXTURES)
def test_equals_the_fixture(stem):
    facts = fixture(stem)
    vae = convert.load(AutoencoderKL(FIXTURES[stem]), facts.state, layout="release")
    found = jax.jit(vae.encode)(nhwc(facts.inputs["image"]))
    facts.check("mean", nchw(found.mean))
    facts.check("logvar", nchw(found.logvar))
    facts.check("encoder_feature.0", nchw(found.taps[1]))
    if len(found.taps) > 2:
        facts.check("encoder_feature.1", nchw(found.taps[2]))
    facts.check("decoded", nchw(jax.jit(vae.decode)(nhwc(facts.inputs["latent"]))))

    back = convert.dump(vae, layout="release")
    assert back.keys() == facts.state.keys()
    assert all(np.array_equal(back[key], facts.state[key]) for key in back)


def test_equals_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    for value in theirs.parameters():
        torch.nn.init.normal_(value, 0.1, 0.3)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = convert.load(AutoencoderKL(TINY), state, layout="diffusers")
    assert convert.dump(ours, layout="diffusers").keys() == state.keys()

    rng = np.random.default_rng(0)
    image, latent = (rng.standard_normal(s, np.float32) for s in ((2, 3, 8, 12), (2, 3, 4, 6)))
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(image)).latent_dist
        expected_image = theirs.decode(torch.from_numpy(latent)).sample.numpy()
    found = jax.jit(ours.encode)(nhwc(image))
    assert _relative(nchw(found.mean), expected.mean.numpy()) < 1e-4
    assert _relative(nchw(found.logvar), expected.logvar.numpy()) < 1e-4
    assert _relative(nchw(jax.jit(ours.decode)(nhwc(latent))), expected_image) < 1e-4

    # The attention names of early diffusers versions mean the same.
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for key, v in state.items()}
    again = convert.dump(convert.load(AutoencoderKL(TINY), state, layout="diffusers"), layout="diffusers")
    assert all(np.array_equal(value, again[key]) for key, value in convert.dump(ours, "diffusers").items())


def test_sizes_and_channels_of_the_taps():
    config = VAEConfig.small()
    vae = parameters.initialise(AutoencoderKL(config))
    taps = jax.eval_shape(vae.encode, np.zeros((1, 16, 24, 3), np.float32)).taps
    assert [tap.shape for tap in taps] == [(1, 16, 24, 16), (1, 8, 12, 32)]
    assert tuple(tap.shape[-1] for tap in taps) == config.tap_channels


def test_without_attention_in_the_middle_the_cost_grows_with_the_area():
    structure, params = parameters.split(AutoencoderKL(VAEConfig.small()))
    assert not any("attentions" in path for path in params)

    def flop(side: int) -> float:
        image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        run = jax.jit(lambda params, x: parameters.merge(structure, params).encode(x).mean)
        return run.lower(params, image).compile().cost_analysis()["flops"] / side**2

    assert flop(256) == pytest.approx(flop(64), rel=0.1)


def test_sides_must_fit_the_factor():
    vae = AutoencoderKL(VAEConfig.small())
    with pytest.raises(ValueError, match=r"16x18.*multiples of 4"):
        jax.eval_shape(vae.encode, np.zeros((1, 16, 18, 3), np.float32))


def _relative(found, expected) -> float:
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


def test_both_forms_of_the_first_convolution():
    config = VAEConfig(base_channels=8, channel_mult=(2, 1, 1), num_res_blocks=1, groups=4)
    shape = lambda config, path: parameters.declared(AutoencoderKL(config))[path].get_value().shape
    shortcut = "encoder.down_blocks.0.resnets.0.conv_shortcut.weight"
    assert shape(config, "encoder.conv_in.weight") == (3, 3, 3, 16)
    assert shortcut not in parameters.declared(AutoencoderKL(config))
    original = replace(config, stem_channels=8)
    assert shape(original, "encoder.conv_in.weight") == (3, 3, 3, 8)
    assert shape(original, shortcut)[-2:] == (8, 16)
    with pytest.raises(ValueError, match=r"vae\.stem_channels: diffusers has no"):
        vae_config(original)
