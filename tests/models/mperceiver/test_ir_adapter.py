from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.ir_adapter import IRAdapter, IRAdapterConfig
from tests.support.parity_fixtures import fixture, nhwc

TINY = replace(
    IRAdapterConfig.small(),
    latent_channels=4,
    model_channels=8,
    channel_mult=(1, 2),
    attention_levels=(1,),
    out_channels=12,
    classes=3,
    prompt_tokens=2,
    prompt_width=10,
    prompt_heads=2,
    prompt_head_width=3,
    heads=2,
    groups=4,
)
ONE_SCALE = replace(TINY, channel_mult=(1,), attention_levels=())


def awake(config, seed=0):
    """An adapter without the zeros that would hide most of it."""
    adapter = IRAdapter(config)
    values = parameters.initial_values(adapter, seed)
    rng = np.random.default_rng(seed)
    draw = lambda value: value + 0.1 * rng.standard_normal(value.shape, np.float32)
    parameters.assign(adapter, {path: draw(value) for path, value in values.items()})
    return adapter


def tiny_inputs(config=TINY, sides=(4, 6)):
    rng = np.random.default_rng(3)
    z = rng.standard_normal((2, *sides, config.latent_channels), np.float32)
    return z, np.array([7, 900]), 2 * rng.standard_normal((2, config.classes), np.float32)


def call(adapter, *inputs):
    structure, params = parameters.split(adapter)
    return jax.jit(lambda params, *inputs: parameters.merge(structure, params)(*inputs))(params, *inputs)


def test_full_size_counts():
    adapter = IRAdapter(IRAdapterConfig.release())
    declared = parameters.declared(adapter)
    assert (parameters.count(adapter), len(declared)) == (53_937_152, 243)
    parts = {
        ("time_embedding", "input_blocks", "middle_block"): 33_287_424,
        ("visual_prompt",): 442_368,
        ("prompt_attns",): 3_409_152,
        ("norm1",): 2_560,
        ("norm2",): 4_096,
        ("fea_tran",): 16_791_552,
    }
    for names, expected in parts.items():
        shapes = [leaf.get_value().shape for path, leaf in declared.items() if path.split(".")[0] in names]
        assert sum(map(np.prod, shapes)) == expected, names


def test_a_latent_that_is_not_square():
    structure, params = parameters.split(IRAdapter(IRAdapterConfig.release()))
    struct = jax.ShapeDtypeStruct
    inputs = struct((1, 64, 72, 4), jnp.bfloat16), struct((1,), jnp.int32), struct((1, 9), jnp.float32)
    maps = jax.eval_shape(lambda params, *x: parameters.merge(structure, params)(*x), params, *inputs)
    sizes = [(64, 72), (32, 36), (16, 18), (8, 9)]
    assert maps == tuple(struct((1, h, w, 512), jnp.bfloat16) for h, w in sizes)


def test_intermediate_maps_and_outputs_equal_the_release():
    reference = fixture("01_ir_adapter")
    config = IRAdapterConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        out_channels=32,
        prompt_tokens=6,
        prompt_width=40,
        prompt_heads=4,
        prompt_head_width=12,
    )
    adapter = convert.load(IRAdapter(config), reference.state)
    structure, params = parameters.split(adapter)

    @jax.jit
    def steps(params, z, t, logits):
        adapter = parameters.merge(structure, params)
        trunk = adapter.trunk(z, adapter.time_embedding(t, z.dtype))
        prompts, p = adapter.prompts(), jax.nn.softmax(logits)
        prompted = [adapter.attend(scale, x, prompts[scale], p) for scale, x in enumerate(trunk)]
        return trunk, prompted, adapter(z, t, logits)

    given = reference.inputs
    out = steps(params, nhwc(given["latent"]), given["timesteps"], given["logits"])
    for name, maps in zip(("trunk", "prompted", "feature"), out, strict=True):
        for side, value in zip((8, 4), maps, strict=True):
            reference.check(f"{name}.{side}", value)
    dumped = convert.dump(adapter)
    assert dumped.keys() == reference.state.keys()
    for key, value in reference.state.items():
        np.testing.assert_array_equal(dumped[key], value, strict=True)


def test_the_full_layout_equals_the_release():
    reference = fixture("01b_ir_adapter_release_layout")
    config = replace(IRAdapterConfig.release(), model_channels=32, out_channels=64)
    adapter = convert.load(IRAdapter(config), reference.state)
    given = reference.inputs
    maps = call(adapter, nhwc(given["latent"]), given["timesteps"], given["logits"])
    for side, value in zip((16, 8, 4, 2), maps, strict=True):
        reference.check(f"feature.{side}", value)
    dumped = convert.dump(adapter)
    assert dumped.keys() == reference.state.keys()
    for key, value in reference.state.items():
        np.testing.assert_array_equal(dumped[key], value, strict=True)


def test_fused_prompt_attention_equals_the_class_by_class_sum():
    structure, params = parameters.split(awake(TINY))
    p = jax.nn.softmax(tiny_inputs()[2])
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 8), np.float32)

    @jax.jit
    def both(params):
        adapter = parameters.merge(structure, params)
        tokens, expected = adapter.norm1[0](x.reshape(2, 24, 8)), x
        for j in range(TINY.classes):
            context = adapter.norm2[0](adapter.visual_prompt[...][0, j])
            seen = adapter.prompt_attns[0](tokens, jnp.broadcast_to(context, (2, *context.shape[1:])))
            expected += p[:, j, None, None, None] * seen.reshape(x.shape)
        return adapter.attend(0, x, adapter.prompts()[0], p), expected

    fused, expected = both(params)
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    assert np.abs(fused - x).max() > 0.05


def test_prompts_at_hand_are_used_and_change_nothing():
    adapter, inputs = awake(ONE_SCALE), tiny_inputs(ONE_SCALE)
    maps = call(adapter, *inputs)
    prompts = adapter.prompts()
    assert [k.shape for k, _ in prompts] == [(3, 2, 6)]
    for fresh, reused in zip(maps, call(adapter, *inputs, prompts), strict=True):
        np.testing.assert_allclose(fresh, reused, atol=1e-5)
    silent = [(k, jnp.zeros_like(v)) for k, v in prompts]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(maps, call(adapter, *inputs, silent), strict=True))


def test_depends_on_latent_timestep_and_logits_of_its_own_image_only():
    adapter = awake(TINY)
    structure, params = parameters.split(adapter)
    run = jax.jit(lambda *inputs: parameters.merge(structure, params)(*inputs))
    given = tiny_inputs()
    base = run(*given)
    for index in range(3):
        changed = list(map(np.copy, given))
        changed[index][0] = changed[index][0][..., ::-1] if index != 1 else 400
        for before, after in zip(base, run(*changed), strict=True):
            assert np.abs(before[0] - after[0]).max() > 1e-4
            np.testing.assert_allclose(before[1], after[1], atol=1e-6)


def test_residual_branches_start_at_zero():
    values = parameters.initial_values(IRAdapter(TINY), seed=0)
    zeros = {path for path, value in values.items() if path.endswith("weight") and not np.any(value)}
    blocks = [f"{name}.0" for name in ("input_blocks.1", "input_blocks.3", "middle_block", "fea_tran")]
    blocks += ["middle_block.2", "fea_tran.1"]
    attentions = ["input_blocks.3.1", "middle_block.1"]
    expected = {f"{name}.conv2.weight" for name in blocks} | {f"{name}.proj_out.weight" for name in attentions}
    assert zeros == expected


def test_remat_changes_no_gradient():
    inputs = tiny_inputs(ONE_SCALE, sides=(2, 3))
    params = parameters.split(awake(ONE_SCALE))[1]

    def gradient_and_wrapped(remat):
        structure, _ = parameters.split(IRAdapter(replace(ONE_SCALE, remat=remat)))

        def loss(params):
            return jnp.square(parameters.merge(structure, params)(*inputs)[0]).mean()

        primitives = [equation.primitive.name for equation in jax.make_jaxpr(loss)(params).eqns]
        wrapped = sum(name.startswith(("remat", "checkpoint")) for name in primitives)
        return jax.jit(jax.grad(loss))(params), wrapped

    (kept, none), (again, wrapped) = gradient_and_wrapped(False), gradient_and_wrapped(True)
    # The first convolution, a residual block, the middle's three blocks, and the output block.
    assert (none, wrapped) == (0, 6)
    for path, gradient in kept.items():
        tolerance = 1e-4 * np.abs(gradient).max() + 1e-7
        np.testing.assert_allclose(again[path], gradient, atol=tolerance, err_msg=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"groups": 5}, "5 groups"), ({"heads": 3}, "3 heads"), ({"attention_levels": (2,)}, "2 scales")],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
