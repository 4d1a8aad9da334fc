"""FLOP counted from traces: of small functions by hand, of the full-size model against the specification."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flop import flop, per_example
from benchmarks.subject import part_flop
from mperceiver_jax.models.layers import attention
from mperceiver_jax.models.mperceiver.model import MPerceiverConfig


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolved(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_products_convolutions_and_loops_are_counted_by_hand():
    assert flop(lambda a, b: jnp.tanh(a @ b), struct(3, 5), struct(5, 7)) == 2 * 3 * 5 * 7
    once = 2 * (2 * 8 * 8 * 6) * (9 * 4)
    assert flop(convolved, struct(2, 8, 8, 4), struct(3, 3, 4, 6)) == once
    repeated = lambda x, kernel: jax.lax.scan(lambda x, _: (convolved(x, kernel), None), x, None, 5)[0]
    assert flop(repeated, struct(2, 8, 8, 4), struct(3, 3, 4, 4)) == 5 * once * 4 / 6
    # Queries and values, whatever the kernel that computes them.
    assert flop(lambda q: attention(q, q, q, 2), struct(3, 10, 8)) == 2 * 2 * 3 * 10 * 10 * 8
    endless = lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)
    with pytest.raises(ValueError, match="length is not known"):
        flop(endless, struct(2, 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_costs_as_much_as_the_forward_pass(stride):
    inputs = struct(2, 8, 8, 4), struct(3, 3, 4, 6)
    run = lambda *given: convolved(*given, stride).sum()
    forward = flop(run, *inputs)
    assert flop(jax.grad(run, argnums=0), *inputs) == 2 * forward
    assert flop(jax.grad(run, argnums=(0, 1)), *inputs) == 3 * forward


def test_what_grows_with_the_batch_and_what_does_not():
    shared = struct(5, 5)
    function = lambda batch: flop(lambda x, w: x @ (w @ w), struct(batch, 5), shared)
    assert per_example(function) == (50, 250)


def test_the_parts_at_full_size_are_those_of_the_specification():
    expected = {
        "unet": 804,
        "modulators": 88,
        "adapter": 77,
        "adapter prompts, per batch": 0.9,
        "text": 316,
        "text beginning, per batch": 406 - 316,
        "cm_inversion": 1.3,
        "vae_encode": 1117,
        "vae_decode": 2515,
        "drm": 466,
        "clip": 335,
    }
    found = part_flop(MPerceiverConfig.sd21(), 512)
    assert found.keys() == expected.keys()
    for name, gigaflop in expected.items():
        assert found[name] == pytest.approx(gigaflop * 1e9, rel=0.02 if gigaflop > 10 else 0.06), name
