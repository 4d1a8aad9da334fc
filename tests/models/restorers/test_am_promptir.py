"""AM-PromptIR against its fixtures, and both ways of reading words."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.am_promptir import AdaptivePrompt, AMPromptIR, AMPromptIRConfig
from mperceiver_jax.models.restorers.text_prompts import release_ids
from tests.support import closed_form

TINY = AMPromptIRConfig(
    dim=8,
    blocks=(1, 1, 1, 1),
    refinement_blocks=1,
    prompt_sides=(8, 4, 2),
    fusion_reductions=(2, 2),
    text_width=12,
)
RNG = np.random.default_rng(0)
X = RNG.random((2, 16, 16, 3), np.float32)
TEXT = RNG.standard_normal((2, 12), np.float32)


def test_size():
    assert parameters.count(AMPromptIR(AMPromptIRConfig.release())) == 52_506_703
    # The text linears read 1024 numbers instead of 24, 48 and 96.
    wider = 48 * (1024 - 24) + 96 * (1024 - 48) + 192 * (1024 - 96)
    assert parameters.count(AMPromptIR(AMPromptIRConfig.full())) == 52_506_703 + wider


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("AM-PromptIR b1 derain", ["derain"]),
        pytest.param("AM-PromptIR b2 [derain,denoise_25]", ["derain", "denoise_25"], marks=pytest.mark.slow),
    ],
)
def test_equals_the_fixture(name, classes):
    net = AMPromptIR(AMPromptIRConfig.release())
    convert.load(net, closed_form.state("AM-PromptIR", "am_promptir"))
    closed_form.check(name, jax.jit(net)(closed_form.image(len(classes)), release_ids(classes)))


def test_the_releases_text_map_mixes_a_batch_row_by_row():
    prompt = parameters.initialise(AdaptivePrompt(16, 4, replace(TINY, text_path="release")))
    ids = release_ids(["derain", "denoise_25", "dehazy"])
    found = np.asarray(prompt._text_map(ids, 5, 20))
    assert found.shape == (1, 5, 20, 16)
    numbers = ids.astype(np.float64) @ np.asarray(prompt.linear_text.weight[...], np.float64)
    numbers += np.asarray(prompt.linear_text.bias[...])
    for r in range(5):
        for c in range(20):
            assert np.all(found[0, r, c] == np.float32(np.sign(numbers[r % 3, c % 16]) / 4))


def test_words_act_per_image_and_every_parameter_learns():
    prompt = parameters.initialise(AdaptivePrompt(32, 4, TINY))
    structure, params = parameters.split(prompt)
    features = RNG.standard_normal((2, 5, 6, 32), np.float32)

    @jax.jit
    def run(params, text):
        def loss(params):
            out = parameters.merge(structure, params)(features, text)
            return (out**2).sum(), out

        return jax.grad(loss, has_aux=True)(params)

    gradients, both = run(params, TEXT)
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []
    # Another image's words make no difference; one's own do.
    _, other = run(params, TEXT * np.array([[1], [-1]], np.float32))
    np.testing.assert_allclose(both[0], other[0], atol=1e-6)
    assert np.abs(both[1] - other[1]).max() > 1e-4


def test_any_size():
    net = parameters.initialise(AMPromptIR(TINY))
    assert jax.eval_shape(net, X[:, :9, :13], TEXT).shape == (2, 9, 13, 3)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("text_path", "text", "message"),
    [
        ("clip", TEXT[:, :5], r"float embeddings \(batch, 12\) expected"),
        ("clip", release_ids(["derain", "derain"]), "float embeddings"),
        ("clip", TEXT[:1], "1 texts for 2 images"),
        ("release", TEXT, "token ids"),
    ],
)
def test_words_that_do_not_fit(text_path, text, message):
    with pytest.raises(ValueError, match=message):
        AMPromptIR(replace(TINY, text_path=text_path))(X, text)


@pytest.mark.usefixtures("unchecked_shapes")
def test_sizes_are_checked():
    with pytest.raises(ValueError, match="text_path: 'words' given"):
        replace(TINY, text_path="words")
    with pytest.raises(ValueError, match="dim=12"):
        replace(TINY, dim=12)
