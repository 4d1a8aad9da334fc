import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.keymaps import registry
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.unet import MidBlock, UNet, UNetConfig
from tests.support.parity_fixtures import fixture, nhwc

TINY = replace(
    UNetConfig.small(),
    latent_channels=4,
    model_channels=8,
    channel_mult=(1, 2),
    attention_levels=(1,),
    head_width=8,
    context_width=12,
    groups=4,
    feature_channels=6,
    modulator_hidden=5,
)
ONE_LEVEL = replace(TINY, channel_mult=(1,), attention_levels=())


def call(unet, *inputs):
    structure, params = parameters.split(unet)
    return jax.jit(lambda params, *inputs: parameters.merge(structure, params)(*inputs))(params, *inputs)


def awake(unet):
    """The UNet at its start, but random where the prior starts at zero and would hide everything."""
    values = parameters.initial_values(unet, 0)
    rng = np.random.default_rng(0)
    for path, value in values.items():
        if ".spade." not in path and not np.any(value):
            values[path] = rng.standard_normal(value.shape, np.float32) * np.float32(0.1)
    parameters.assign(unet, values)
    return unet


def tiny_inputs(config=TINY, sides=(4, 6)):
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    h, w = sides
    features = [draw(2, h >> level, w >> level, config.feature_channels) for level in range(config.levels)]
    context = draw(2, 5, config.context_width)
    return draw(2, h, w, config.latent_channels), jnp.array([7, 900]), context, features


def test_full_size_counts_and_shapes():
    plain = UNet(replace(UNetConfig.sd21(), modulated=False))
    assert (parameters.count(plain), len(parameters.declared(plain))) == (865_910_724, 686)
    whole = UNet(UNetConfig.sd21())
    assert parameters.count(whole) - parameters.count(plain) == 59_508_224
    added = parameters.declared(whole).keys() - parameters.declared(plain).keys()
    assert len(added) == 176 and all(".spade." in path for path in added)

    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    features = [struct(1, 64 >> s, 72 >> s, 512) for s in range(4)]
    inputs = (struct(1, 64, 72, 4), jax.ShapeDtypeStruct((1,), jnp.int32), struct(1, 77, 1024), features)
    structure, params = parameters.split(whole)
    eps = jax.eval_shape(lambda params, *inputs: parameters.merge(structure, params)(*inputs), params, *inputs)
    assert eps == struct(1, 64, 72, 4)


def test_full_size_names_and_sizes_are_those_of_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(
            attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
        )
    plain = UNet(replace(UNetConfig.sd21(), modulated=False))
    sizes = {path: np.prod(leaf.get_value().shape) for path, leaf in parameters.declared(plain).items()}
    assert sizes == {key: value.numel() for key, value in theirs.state_dict().items()}


def test_full_size_release_keys():
    names = registry.keymap(UNet(UNetConfig.sd21()), "release")
    keys = {names.key(path) for path in parameters.declared(UNet(UNetConfig.sd21()))}
    assert len(keys) == 862
    blocks = {int(match[1]) for key in keys if (match := re.match(r"output_blocks\.(\d+)\.1\.norm\.", key))}
    assert blocks == set(range(3, 12))
    ends = {f"output_blocks.{k}.conv.weight" for k in ("2.1", "5.2", "8.2")}
    ends |= {f"input_blocks.{k}.0.op.weight" for k in (3, 6, 9)}
    modulated = [key for key in keys if key.endswith("spade.mlp_gamma.weight")]
    assert ends <= keys and len(modulated) == 22 and "middle_block.1.norm.weight" in keys


def test_intermediate_maps_and_output_equal_the_release():
    reference = fixture("04_unet")
    config = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        head_width=16,
        context_width=48,
        feature_channels=12,
        modulator_hidden=8,
    )
    structure, params = parameters.split(convert.load(UNet(config), reference.state))

    @jax.jit
    def hidden(params, latent, t, context, fine, coarse):
        unet = parameters.merge(structure, params)
        temb = unet.time_embedding(t, latent.dtype)
        first = unet.conv_in(latent)
        seen = unet.read(context)
        second, third = unet.down_blocks[0](first, temb, seen[0], fine)
        (fourth,) = unet.down_blocks[1](third, temb, seen[1], coarse)
        middle = unet.mid_block(fourth, temb, seen[2], coarse)
        up = unet.up_blocks[0](middle, [fourth, third], temb, seen[3], coarse)
        last = unet.up_blocks[1](up, [second, first], temb, seen[4], fine)
        names = [
            *(f"input_blocks.{k}" for k in range(4)),
            "middle_block",
            "output_blocks.1",
            "output_blocks.3",
        ]
        maps = dict(zip(names, (first, second, third, fourth, middle, up, last), strict=True))
        return maps, unet(latent, t, context, (fine, coarse))

    given = reference.inputs
    maps, eps = hidden(
        params,
        nhwc(given["latent"]),
        given["timesteps"],
        given["context"],
        nhwc(given["feature.8"]),
        nhwc(given["feature.4"]),
    )
    reference.check("eps", eps)
    for name, value in maps.items():
        reference.check(f"hidden.{name}", value)


def test_the_layout_of_stable_diffusion_2_equals_the_release():
    reference = fixture("04b_unet_sd2_layout")
    config = replace(UNetConfig.sd21(), model_channels=32, head_width=16, context_width=48, feature_channels=32)
    unet = convert.load(UNet(config), reference.state)
    dumped = convert.dump(unet)
    assert dumped.keys() == reference.state.keys()
    for key, value in reference.state.items():
        np.testing.assert_array_equal(dumped[key], value, strict=True)
    given = reference.inputs
    features = [nhwc(given[f"feature.{side}"]) for side in (16, 8, 4, 2)]
    eps = call(unet, nhwc(given["latent"]), given["timesteps"], given["context"], features)
    reference.check("eps", eps)


def test_plain_unet_equals_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        # diffusers calls the number of heads by this name.
        attention_head_dim=(2, 4),
        cross_attention_dim=24,
        use_linear_projection=True,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    config = UNetConfig(
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        head_width=8,
        context_width=24,
        groups=8,
        modulated=False,
    )
    tensors = {key: value.numpy() for key, value in theirs.state_dict().items()}
    unet = convert.load(UNet(config), tensors, layout="diffusers")
    dumped = convert.dump(unet, layout="diffusers")
    assert dumped.keys() == tensors.keys()
    assert all(np.array_equal(dumped[key], tensors[key]) for key in tensors)

    # Not square: a swap of height and width must show.
    latent, t, context, _ = tiny_inputs(config, sides=(6, 8))
    with torch.no_grad():
        as_torch = [torch.from_numpy(np.array(x)) for x in (jnp.moveaxis(latent, -1, 1), t, context)]
        expected = nhwc(theirs(*as_torch).sample.numpy())
    eps = np.asarray(call(unet, latent, t, context))
    assert np.linalg.norm(eps - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("form", "equal"), [("residual", True), ("release", False)])
def test_only_the_residual_form_starts_as_the_plain_unet(form, equal):
    unet = awake(UNet(replace(ONE_LEVEL, modulator_form=form)))
    latent, t, context, features = tiny_inputs(ONE_LEVEL)
    modulated, plain = (call(unet, latent, t, context, given) for given in (features, None))
    assert np.abs(plain).max() > 0.1
    assert np.array_equal(modulated, plain) == equal


def test_a_plain_unet_shares_its_paths_with_the_modulated_one():
    plain, whole = UNet(replace(ONE_LEVEL, modulated=False)), UNet(ONE_LEVEL)
    values = parameters.initial_values(whole, seed=0)
    parameters.assign(plain, {path: values[path] for path in parameters.declared(plain)})
    parameters.assign(whole, values)
    latent, t, context, features = tiny_inputs(ONE_LEVEL)
    np.testing.assert_array_equal(call(plain, latent, t, context), call(whole, latent, t, context))
    with pytest.raises(ValueError, match="modulated"):
        plain(latent, t, context, features)


def test_every_map_reaches_the_output():
    unet = awake(UNet(replace(TINY, modulator_init="reference")))
    latent, t, context, features = tiny_inputs()
    structure, params = parameters.split(unet)
    loss = lambda features: jnp.square(parameters.merge(structure, params)(latent, t, context, features)).mean()
    for gradient in jax.jit(jax.grad(loss))(features):
        assert np.abs(gradient).max() > 1e-6


def test_remat_wraps_every_residual_block_and_transformer():
    inputs = tiny_inputs()

    def recomputed(remat):
        structure, params = parameters.split(UNet(replace(TINY, remat=remat)))
        params = {path: jnp.zeros(value.shape) for path, value in params.items()}
        programme = jax.make_jaxpr(lambda params: parameters.merge(structure, params)(*inputs))(params)
        return sum(equation.primitive.name.startswith(("remat", "checkpoint")) for equation in programme.eqns)

    # Residual blocks: two down, two in the middle, four up; transformers: one, one and two.
    assert recomputed(False) == 0
    assert recomputed(True) == 8 + 4


def test_remat_changes_no_gradient():
    latent, _, context, features = tiny_inputs(sides=(4, 4))
    config = replace(ONE_LEVEL, modulator_init="reference")
    params = parameters.initial_values(MidBlock(config), seed=0)
    h, temb = jnp.tile(latent, 2), latent.reshape(2, -1)[:, : config.time_width]

    def gradient(remat):
        structure, _ = parameters.split(MidBlock(replace(config, remat=remat)))

        def loss(params, h):
            block = parameters.merge(structure, params)
            return jnp.square(block(h, temb, block.read(context), features[0])).mean()

        return jax.jit(jax.grad(loss, (0, 1)))(params, h)

    for (path, kept), again in zip(
        jax.tree.leaves_with_path(gradient(False)), jax.tree.leaves(gradient(True)), strict=True
    ):
        assert np.abs(kept).max() > 0, path
        np.testing.assert_allclose(again, kept, atol=1e-5 * np.abs(kept).max() + 1e-8, err_msg=str(path))


def test_inputs_that_do_not_fit_are_refused():
    unet = UNet(TINY)
    latent, t, context, features = tiny_inputs()
    with pytest.raises(ValueError, match="4x5"):
        unet(latent[:, :, :5], t, context, features)
    with pytest.raises(ValueError, match=r"\(2, 3, 6\).*expected \[\(4, 6, 6\)"):
        unet(latent, t, context, features[::-1])
    with pytest.raises(ValueError, match="expected"):
        unet(latent, t, context, features[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "3 groups"),
        ({"head_width": 3}, "heads of 3"),
        ({"attention_levels": (2,)}, "2 levels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
