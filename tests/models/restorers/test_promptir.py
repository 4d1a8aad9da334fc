"""PromptIR against its fixture; its prompts at sizes the fixture does not have."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.promptir import PromptGeneration, PromptIR, PromptIRConfig
from tests.support import closed_form
from tests.support.parity_fixtures import nhwc

TINY = PromptIRConfig(
    dim=8,
    blocks=(1, 1, 1, 1),
    refinement_blocks=1,
    heads=(1, 2, 2, 4),
    prompt_widths=(8, 16, 32),
    prompt_sides=(8, 4, 2),
)


def test_size():
    net = PromptIR(PromptIRConfig.full())
    assert parameters.count(net) == 35_376_967
    assert set(parameters.declared(net)) == set(closed_form.state_keys("MiOIR PromptIR", "mioir"))


def test_equals_the_fixture():
    net = convert.load(PromptIR(PromptIRConfig.full()), closed_form.state("PromptIR", "promptir"))
    found = jax.jit(net)(closed_form.image())
    closed_form.check("PromptIR", found)
    closed_form.check("MiO PromptIR", found)


@pytest.mark.parametrize("size", [(3, 5), (9, 4)])
def test_prompts_follow_the_size_of_the_features(size):
    torch = pytest.importorskip("torch")
    prompt = parameters.initialise(PromptGeneration(5, 6, 4, 10))
    features = np.random.default_rng(0).standard_normal((2, *size, 10), np.float32)
    logits = features.mean((1, 2)) @ np.asarray(prompt.linear_layer.weight[...])
    weights = torch.from_numpy(logits + np.asarray(prompt.linear_layer.bias[...])).softmax(-1)
    stack = torch.from_numpy(np.array(prompt.prompt_param[...]))
    mixed = (weights[..., None, None, None] * stack).sum(1)
    resized = torch.nn.functional.interpolate(mixed, size, mode="bilinear")
    kernel = torch.from_numpy(np.array(prompt.conv3x3.weight[...]).transpose(3, 2, 0, 1).copy())
    wanted = torch.nn.functional.conv2d(resized, kernel, padding=1)
    np.testing.assert_allclose(prompt(features), nhwc(wanted.numpy()), atol=1e-5)


def test_prompts_start_between_zero_and_one():
    start = np.asarray(parameters.initialise(PromptGeneration(5, 6, 4, 10)).prompt_param[...])
    assert 0 <= start.min() < 0.05
    assert 0.95 < start.max() < 1


def test_a_prompt_learns():
    prompt = parameters.initialise(PromptGeneration(5, 6, 4, 10))
    structure, params = parameters.split(prompt)
    features = np.random.default_rng(1).standard_normal((2, 4, 4, 10), np.float32)
    gradients = jax.jit(jax.grad(lambda p: (parameters.merge(structure, p)(features) ** 2).sum()))(params)
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []


def test_any_size():
    net = parameters.initialise(PromptIR(TINY))
    x = np.zeros((2, 19, 13, 3), np.float32)
    assert jax.eval_shape(net, x).shape == x.shape


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="pad_to"):
        replace(TINY, pad_to=4)
