"""The degradation predictor against the release's fixture."""

import jax
import numpy as np

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import VisionConfig
from mperceiver_jax.models.mperceiver.predictor import DegradationPredictor, PredictorConfig
from tests.support.parity_fixtures import fixture, nhwc


def test_size_of_the_head():
    predictor = DegradationPredictor(PredictorConfig.release())
    sizes = [parameters.count(layer) for layer in (predictor.fc1, predictor.fc2)]
    assert sum(sizes) == 529_417
    assert sum(path.startswith("fc") for path in parameters.declared(predictor)) == 4


def test_equals_the_fixture():
    facts = fixture("07_predictor_vision")
    vision = VisionConfig(image_size=56, patch_size=14, width=48, layers=2, heads=4, embed_width=40)
    predictor = DegradationPredictor(PredictorConfig(vision=vision, hidden=24))
    convert.load(predictor, facts.state, layout="release")
    e, logits = jax.jit(predictor)(nhwc(facts.inputs["image"]))
    facts.check("embedding", e)
    facts.check("logits", logits)
    facts.check("logits", predictor.head(facts.outputs["embedding"]))
    back = convert.dump(predictor, layout="release")
    assert back.keys() == facts.state.keys()
    assert all(np.array_equal(back[key], facts.state[key]) for key in back)


def test_views_of_an_image_are_averaged_as_embeddings():
    """Also where a batch has one view alone; a batch of whole images keeps its four axes."""
    vision = VisionConfig(image_size=16, patch_size=8, width=24, layers=1, heads=4, embed_width=12, stem="conv")
    predictor = parameters.initialise(DegradationPredictor(PredictorConfig(vision=vision, hidden=8, classes=10)))
    run = jax.jit(predictor)
    views = np.random.default_rng(0).standard_normal((2, 4, 16, 16, 3), np.float32)
    e, logits = run(views)
    each, _ = run(views.reshape(8, 16, 16, 3))
    np.testing.assert_allclose(e, np.asarray(each).reshape(2, 4, 12).mean(1), atol=1e-5)
    np.testing.assert_allclose(logits, predictor.head(e), atol=1e-5)
    for one, whole in zip(run(views[:, :1]), run(views[:, 0]), strict=True):
        np.testing.assert_allclose(one, whole, atol=1e-5)
