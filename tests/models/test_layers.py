"""Shared layers against the release's own building blocks (fixture 00) and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mperceiver_jax import convert
from mperceiver_jax.convert.keymaps.keymap import KeyMap
from mperceiver_jax.convert.keymaps.latent_diffusion import RESNET_BLOCK
from mperceiver_jax.convert.keymaps.registry import LAYOUTS
from mperceiver_jax.models import attention, layers, parameters
from mperceiver_jax.models.mperceiver.ir_adapter import AttentionBlock
from mperceiver_jax.models.mperceiver.spatial_transformer import FeedForward, SpatialTransformer
from tests.support.parity_fixtures import fixture, nhwc


class PlainAttention(nnx.Module):
    """One head over the pixels, as in the middle of the autoencoder."""

    def __init__(self, channels):
        self.norm = layers.GroupNorm(channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (layers.Linear(channels, channels) for _ in range(4))

    def __call__(self, x):
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
        seen = layers.attention(self.q(tokens), self.k(tokens), self.v(tokens), heads=1)
        return x + self.proj_out(seen).reshape(x.shape)


class Blocks(nnx.Module):
    """Every block of fixture 00, under its key there."""

    def __init__(self):
        self.gn_unet = layers.GroupNorm(32)
        self.gn_vae = layers.GroupNorm(32, eps=1e-6)
        self.gn_transformer = SpatialTransformer(32, 40, head_width=8).norm
        self.layer_norm = layers.LayerNorm(48)
        self.down_unet = layers.Downsample(32)
        self.up_unet = layers.Upsample(32)
        self.down_vae = layers.Downsample(32, padding=((0, 1), (0, 1)))
        self.up_vae = layers.Upsample(32)
        self.vae_attn_block = PlainAttention(32)
        self.attention_block = AttentionBlock(32, heads=2, groups=32)
        self.cross_attention = layers.CrossAttention(32, 40, heads=2, head_width=12)
        self.feed_forward = FeedForward(32)
        self.spatial_transformer = SpatialTransformer(32, 40, head_width=8)
        self.res_block_time = layers.ResnetBlock(32, 64, time_width=48)
        self.vae_res_block = layers.ResnetBlock(32, 32, time_width=None, eps=1e-6)

    def __call__(self, small_map, map, tokens, context, small_tokens, emb):
        inputs = {
            "gn_unet": [small_map],
            "gn_vae": [small_map],
            "gn_transformer": [small_map],
            "layer_norm": [small_tokens],
            "down_unet": [map],
            "up_unet": [map],
            "down_vae": [map],
            "up_vae": [map],
            "vae_attn_block": [map],
            "attention_block": [map],
            "cross_attention": [tokens, context],
            "feed_forward": [tokens],
            "spatial_transformer": [small_map, context],
            "res_block_time": [small_map, emb],
            "vae_res_block": [small_map],
        }
        return {name: getattr(self, name)(*given) for name, given in inputs.items()}


def test_every_block_equals_the_release(monkeypatch):
    names = KeyMap(
        prefixes=[
            *((f"res_block_time.{ours}", f"res_block_time.{theirs}") for ours, theirs in RESNET_BLOCK),
            ("down_unet.conv", "down_unet.op"),
        ]
    )
    monkeypatch.setitem(LAYOUTS, ("Blocks", "release"), lambda module: names)
    blocks = fixture("00_blocks")
    structure, params = parameters.split(convert.load(Blocks(), blocks.state))
    maps, others = ("small_map", "map"), ("tokens", "context", "small_tokens", "emb")
    inputs = [nhwc(blocks.inputs[name]) for name in maps] + [blocks.inputs[name] for name in others]
    out = jax.jit(lambda params, *inputs: parameters.merge(structure, params)(*inputs))(params, *inputs)
    assert len(out) == 15
    for name, value in out.items():
        blocks.check(name, value)


@pytest.mark.parametrize("width", [32, 33, 320])
def test_sinusoids_equal_the_release(width):
    blocks = fixture("00_blocks")
    blocks.check(f"sinusoid_{width}", layers.timestep_embedding(blocks.inputs["timesteps"], width))


def test_initial_values_are_pytorchs_default():
    torch = pytest.importorskip("torch")
    ours = parameters.initial_values(layers.Conv(16, 32, groups=2), seed=0)
    theirs = torch.nn.Conv2d(16, 32, 3, groups=2)
    for name in ("weight", "bias"):
        expected = getattr(theirs, name).detach().numpy()
        bound = (9 * 8) ** -0.5
        assert np.abs(ours[name]).max() <= bound and np.abs(expected).max() <= bound
        assert np.std(ours[name]) == pytest.approx(np.std(expected), rel=0.25)


def test_convolution_with_groups_and_stride_equals_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    conv = layers.Conv(6, 4, stride=2, padding=1, groups=2)
    weight, bias = (p.detach().numpy() for p in (theirs.weight, theirs.bias))
    parameters.assign(conv, {"weight": weight.transpose(2, 3, 1, 0), "bias": bias})
    x = np.random.default_rng(0).standard_normal((2, 5, 8, 6), np.float32)
    expected = nhwc(theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy())
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


def test_group_norm_survives_a_large_mean():
    # One-pass variance in float32 loses everything here.
    norm = parameters.initialise(layers.GroupNorm(8, groups=2))
    x = np.random.default_rng(0).standard_normal((1, 16, 8), np.float32)
    np.testing.assert_allclose(norm(x * 0.1 + 100), norm(x * 0.1), atol=1e-2)


def test_computes_in_the_dtype_of_the_input():
    block = parameters.initialise(layers.ResnetBlock(8, 16, time_width=4, groups=4))
    x, temb = jnp.ones((1, 4, 4, 8), jnp.bfloat16), jnp.ones((1, 4), jnp.bfloat16)
    assert jax.eval_shape(block, x, temb).dtype == jnp.bfloat16


@pytest.mark.parametrize("queries", [5, 12, 13])
def test_attention_piece_by_piece_is_the_same(monkeypatch, queries):
    shapes = ((2, queries, 8), (2, 13, 8), (2, 13, 8))
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    def value(q):
        return layers.attention(q, k, v, heads=2)

    whole, slope = value(q), jax.grad(lambda q: value(q).var())(q)
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 4 * 13 * 2)  # four queries at a time
    assert "scan" in str(jax.make_jaxpr(value)(q))
    np.testing.assert_allclose(value(q), whole, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda q: value(q).var())(q), slope, atol=1e-6)


def test_attention_mask_hides_keys():
    q, k, v = (np.random.default_rng(i).standard_normal((1, 5, 8), np.float32) for i in range(3))
    mask = np.arange(5) < 3
    masked = layers.attention(q, k, v, 2, mask[None, None, None])
    np.testing.assert_allclose(masked, layers.attention(q, k[:, :3], v[:, :3], 2), atol=1e-6)


def test_a_block_with_a_time_term_refuses_to_run_without():
    block = parameters.initialise(layers.ResnetBlock(8, 8, time_width=4, groups=4))
    with pytest.raises(ValueError, match="time embedding"):
        block(jnp.ones((1, 4, 4, 8)))


def test_groups_must_divide_channels():
    with pytest.raises(ValueError, match="30 channels"):
        layers.GroupNorm(30)


def test_run_with_remat_sees_new_parameters():
    linear = parameters.initialise(layers.Linear(3, 2))
    x = jnp.ones((1, 3))
    before = layers.apply_block(linear, x, remat=True)
    parameters.assign(linear, {"weight": jnp.zeros((3, 2)), "bias": jnp.ones(2)})
    np.testing.assert_array_equal(layers.apply_block(linear, x, remat=True), np.ones((1, 2)))
    assert np.abs(before - 1).max() > 1e-3


@pytest.mark.parametrize(
    ("kernel", "groups", "outputs"),
    [(3, 6, 6), (3, 3, 3), ((1, 5), 6, 6), (1, 1, 5)],
    ids=["depthwise", "depthwise of pairs", "depthwise row", "one by one"],
)
def test_fast_forms_of_convolutions_have_the_values_and_gradients_of_xlas(kernel, groups, outputs):
    conv = parameters.initialise(layers.Conv(6, outputs, kernel, groups=groups))
    structure, params = parameters.split(conv)
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 6))
    slope = jax.random.normal(jax.random.key(1), (2, 5, 7, outputs))

    def reference(params, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, params["weight"], (1, 1), conv.padding, dimension_numbers=dimensions, feature_group_count=groups
        )
        return y + params["bias"]

    ours, pull = jax.vjp(lambda params, x: parameters.merge(structure, params)(x), params, x)
    theirs, reference_pull = jax.vjp(reference, params, x)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for found, expected in zip(jax.tree.leaves(pull(slope)), jax.tree.leaves(reference_pull(slope)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
