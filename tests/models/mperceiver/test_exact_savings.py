"""What is computed once instead of many times, against the plain form.

The beginning of the captions: test_cm_adapter.py. The visual prompts: test_ir_adapter.py.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.diffusion.restoration import sample_latent
from mperceiver_jax.diffusion.samplers import DDIM
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.distributed import sharding
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.mperceiver.unet import UNet
from mperceiver_jax.models.mperceiver.vae import AutoencoderKL
from tests.support.tiny_model import tiny_config, tiny_values


def awake(module):
    """(structure, values without the zeros that would hide most of the module)."""
    rng = np.random.default_rng(0)
    values = parameters.initial_values(module, 0, lambda path, value: value)
    draw = lambda value: value + np.float32(0.1) * rng.standard_normal(value.shape, np.float32)
    return parameters.split(module)[0], {path: draw(value) for path, value in values.items()}


def test_a_context_read_once_equals_reading_it_at_every_step():
    config = tiny_config().unet
    structure, values = awake(UNet(config))
    rng = np.random.default_rng(1)
    context = rng.standard_normal((2, 8, config.context_width), np.float32)
    latents = rng.standard_normal((3, 2, 4, 4, config.latent_channels), np.float32)

    @jax.jit
    def both(values):
        unet = parameters.merge(structure, values)
        read = unet.read(context)
        t = jnp.full((2,), 500)
        run = lambda seen: jax.lax.map(lambda latent: unet(latent, t, seen), latents)
        return run(context), run(read), run(jax.tree.map(jnp.zeros_like, read))

    plain, once, without = both(values)
    np.testing.assert_allclose(once, plain, atol=1e-5)
    assert np.abs(without - plain).max() > 1e-2


def test_sampling_reads_text_and_prompts_before_the_first_step():
    """The loop of a sampler holds the adapter with its prompts at hand and the UNet with its context read, no
    more: their keys and values are made outside."""
    model = MPerceiver(tiny_config())
    structure, values = parameters.split(model)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def sampled(values, lq, lq_clip, key):
        return sample_latent(parameters.merge(structure, values), DDIM(Schedule(), 3), lq, lq_clip, key)[0]

    jaxpr = jax.make_jaxpr(sampled)(values, struct(1, 16, 16, 3), struct(1, 8, 8, 3), key)
    (loop,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    named = dict(zip(jaxpr.jaxpr.invars, sorted(values), strict=False))
    inside = {named[variable] for variable in loop.invars if variable in named}
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight" in inside
    assert any(path.startswith("ir_adapter.prompt_attns") for path in inside)
    outside = r"unet\..*attn2\.to_[kv]\.|ir_adapter\.(prompt_attns\..*to_[kv]\.|norm2\.|visual_prompt)"
    outside += r"|text_encoder\.|cm_inv\.|tp$|vae\.|predictor\."
    assert any(re.match(outside, path) for path in values)
    assert not [path for path in inside if re.match(outside, path)]


def test_both_images_in_one_batch_equal_two_passes_and_stay_on_their_devices():
    structure, values = awake(AutoencoderKL(tiny_config().vae))
    mesh = sharding.make_mesh()
    rng = np.random.default_rng(2)
    rows = sharding.batch_sharding(mesh)
    lq, gt = (jax.device_put(rng.standard_normal((8, 8, 8, 3), np.float32), rows) for _ in range(2))

    def apart(values, lq, gt):
        vae = parameters.merge(structure, values)
        return vae.encode(lq), vae.encode(gt)

    def joined(values, lq, gt):
        return parameters.merge(structure, values).encode_pair(lq, gt)

    compiled = jax.jit(joined).lower(values, lq, gt).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
    plain, pair = jax.jit(apart)(values, lq, gt), compiled(values, lq, gt)
    for expected, found in zip(jax.tree.leaves(plain), jax.tree.leaves(pair), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(pair[0].mean - pair[1].mean).max() > 0.1


def test_an_observation_is_what_condition_and_encode_see():
    model = MPerceiver(tiny_config())
    structure, values = parameters.split(model)[0], tiny_values(model)
    rng = np.random.default_rng(3)
    lq, gt, view = (rng.standard_normal((2, side, side, 3), np.float32) for side in (16, 16, 8))
    noise = rng.standard_normal((2, 8, 8, 4), np.float32)

    @jax.jit
    def both(values):
        model = parameters.merge(structure, values)
        seen = model.observe(lq, gt, view)
        return (
            (model.latent(seen.lq, noise), model.latent(seen.gt, noise), seen.embedding),
            (model.encode(lq, noise)[0], model.encode(gt, noise)[0], model.perceive(view)[0]),
        )

    for found, expected in zip(*both(values), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
