"""The published sizes against diffusers and transformers, with the same random weights (pytest -m slow).

Every test prints the error it found. One module at a time: the reference is gone before
ours is run, so that the largest needs about 9 GB of memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower, VisionConfig, VisionTower
from mperceiver_jax.models.mperceiver.unet import UNet, UNetConfig
from mperceiver_jax.models.mperceiver.vae import AutoencoderKL, VAEConfig
from tests.support.parity_fixtures import nchw, nhwc

torch = pytest.importorskip("torch")
diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TOLERANCE = 1e-4
SIZES = [(64, 64), (48, 72)]
"""Latents of an image of 512x512 pixels, and of one of 384x576."""


class Pair:
    """A PyTorch module and ours, filled with the same values; theirs first, then ours, never both."""

    def __init__(self, build: Callable[[], "torch.nn.Module"], ours, layout: str, seed: int = 0):
        with torch.device("meta"):
            self.theirs = build().eval()
        self._state = random_state(self.theirs, seed)
        tensors = {key: torch.from_numpy(value) for key, value in self._state.items()}
        self.theirs.load_state_dict(tensors, assign=True)
        for module in self.theirs.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:  # the positions, which no checkpoint stores
                    module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)
        self._to_jax_array, self._layout = ours, layout

    def take_over(self) -> tuple[Callable, parameters.Params]:
        """(function of a module's parameters and inputs, parameters); PyTorch's module is given up."""
        values = convert.from_torch(self._to_jax_array, self._state, self._layout)
        del self.theirs, self._state
        params = {path: jnp.asarray(values.pop(path)) for path in list(values)}
        structure, _ = parameters.split(self._to_jax_array)

        def call(method: str):
            return jax.jit(lambda p, *inputs: getattr(parameters.merge(structure, p), method)(*inputs))

        return call, params


def random_state(module: "torch.nn.Module", seed: int) -> dict[str, np.ndarray]:
    """Weights that keep the variance of what they are given; norms near one; small biases."""
    rng, state = np.random.default_rng(seed), {}
    for key, value in module.state_dict().items():
        drawn = rng.standard_normal(tuple(value.shape), np.float32)
        if "embed" in key:
            drawn *= np.float32(0.3)
        elif value.ndim > 1:
            drawn *= np.float32(np.prod(value.shape[1:]) ** -0.5)
        else:
            drawn *= np.float32(0.1)
            drawn += np.float32("norm" in key and key.endswith(".weight"))
        state[key] = drawn
    return state


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def compare(capsys, what: str, found: Iterable, expected: Iterable, bound: float = TOLERANCE) -> None:
    """Prints and bounds the error: in the mean square, and the worst element over the largest one."""
    for given, reference in zip(found, expected, strict=True):
        given = np.asarray(given, np.float32)
        assert given.shape == reference.shape and np.isfinite(given).all() and reference.std() > 0
        difference = given - reference
        square = np.linalg.norm(difference) / np.linalg.norm(reference)
        worst = np.abs(difference).max() / np.abs(reference).max()
        with capsys.disabled():
            print(f"\n{what} {given.shape}: relative error {square:.2e}, worst element {worst:.2e}", end="", flush=True)
        assert max(square, worst) <= bound


def test_unet(capsys):
    pair = Pair(
        lambda: diffusers.UNet2DConditionModel(
            attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
        ),
        UNet(replace(UNetConfig.sd21(), modulated=False)),
        "diffusers",
    )
    t, context = np.array([321], np.int32), draw(1, 77, 1024)
    latents = [draw(1, *size, 4) for size in SIZES]
    with torch.no_grad():
        expected = [
            nhwc(pair.theirs(torch.from_numpy(nchw(z)), torch.tensor([321]), torch.from_numpy(context)).sample.numpy())
            for z in latents
        ]
    call, params = pair.take_over()
    predict = call("__call__")
    compare(capsys, "UNet, float32", (predict(params, z, t, context) for z in latents), expected)
    half = lambda x: jnp.asarray(x, jnp.bfloat16)
    compare(capsys, "UNet, bfloat16", [predict(params, half(latents[0]), t, half(context))], expected[:1], 0.1)


def test_autoencoder(capsys):
    pair = Pair(
        lambda: diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        ),
        AutoencoderKL(VAEConfig.sd()),
        "diffusers",
    )
    images = [np.tanh(draw(1, 8 * h, 8 * w, 3)) for h, w in SIZES]
    latents = [draw(1, *size, 4) for size in SIZES]
    with torch.no_grad():
        means = [nhwc(pair.theirs.encode(torch.from_numpy(nchw(x))).latent_dist.mean.numpy()) for x in images]
        decoded = [nhwc(pair.theirs.decode(torch.from_numpy(nchw(z))).sample.numpy()) for z in latents]
    call, params = pair.take_over()
    encode, decode = call("encode"), call("decode")
    compare(capsys, "encoder, float32", (encode(params, x).mean for x in images), means)
    compare(capsys, "decoder, float32", (decode(params, z) for z in latents), decoded)
    half = lambda x: jnp.asarray(x, jnp.bfloat16)
    compare(capsys, "encoder, bfloat16", [encode(params, half(images[0])).mean], means[:1], 0.1)
    compare(capsys, "decoder, bfloat16", [decode(params, half(latents[0]))], decoded[:1], 0.1)


def test_image_tower(capsys):
    config = transformers.CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        projection_dim=1024,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    build = lambda: transformers.CLIPVisionModelWithProjection(config)
    pair = Pair(build, VisionTower(VisionConfig.vit_h_14()), "transformers")
    images = draw(2, 224, 224, 3)
    with torch.no_grad():
        expected = pair.theirs(torch.from_numpy(nchw(images))).image_embeds.numpy()
    call, params = pair.take_over()
    embed = call("__call__")
    compare(capsys, "image tower, float32", [embed(params, images)], [expected])
    compare(capsys, "image tower, bfloat16", [embed(params, jnp.asarray(images, jnp.bfloat16))], [expected], 0.1)


def test_text_tower(capsys):
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        max_position_embeddings=77,
        hidden_act="gelu",
    )
    pair = Pair(lambda: transformers.CLIPTextModel(config), TextTower(TextConfig.sd21()), "transformers")
    words = np.random.default_rng(2).integers(1, 49406, 77, np.int32)
    ids = np.stack([TextConfig.sd21().empty_caption(), words])
    with torch.no_grad():
        expected = pair.theirs(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    call, params = pair.take_over()
    encode = call("encode")
    compare(capsys, "text tower, float32", [encode(params, ids)], [expected])
    embedded = jnp.asarray(params["token_embedding.weight"][ids], jnp.bfloat16)
    compare(capsys, "text tower, bfloat16", [call("__call__")(params, embedded)], [expected], 0.1)
