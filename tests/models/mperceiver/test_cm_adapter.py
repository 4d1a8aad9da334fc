"""Cross-modal inversion and the text context, against fixtures and against plain passes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower
from mperceiver_jax.models.mperceiver.cm_adapter import CMConfig, CMInversion, text_context
from tests.support.parity_fixtures import fixture

TEXT = TextConfig(width=16, layers=3, layers_run=2, heads=2, vocabulary=8, context_length=14,
                  projection_width=None, sot_id=6, eot_id=7)  # fmt: skip


def test_sizes():
    cm = CMInversion(CMConfig.release())
    assert (parameters.count(cm), len(parameters.declared(cm))) == (54_553_600, 49)
    config = CMConfig.small()
    small = parameters.initialise(CMInversion(config))
    expected = (2, config.classes, config.tokens, TextConfig.small().width)
    assert jax.eval_shape(small, np.zeros((2, config.embed_width), np.float32)).shape == expected


def test_inversion_equals_the_fixture():
    facts = fixture("02_cm_inv")
    cm = convert.load(CMInversion(CMConfig(embed_width=32, width=32)), facts.state, layout="release")
    facts.check("class_tokens", jax.jit(cm)(facts.inputs["embedding"]))
    back = convert.dump(cm, layout="release")
    assert back.keys() == facts.state.keys()
    assert all(np.array_equal(back[key], facts.state[key]) for key in back)


def test_context_equals_the_fixture():
    facts = fixture("06_text_branch")
    sot_id, eot_id = (int(facts.inputs["token_ids"][0, position]) for position in (0, 33))
    sizes = {"width": 48, "layers": 3, "layers_run": 2, "heads": 4, "vocabulary": 64, "projection_width": 24}
    config = TextConfig(**sizes, sot_id=sot_id, eot_id=eot_id)
    tower = convert.load(TextTower(config), facts.substate("cond_stage_model.model."), layout="open_clip")
    context = jax.jit(lambda *given: text_context(tower, *given))
    facts.check("context", context(facts.state["tp"], facts.inputs["cm_tokens"], facts.inputs["logits"]))


@pytest.mark.parametrize("order", ["t_cm", "cm_t"])
def test_shared_beginning_equals_plain_passes_in_value_and_gradient(order):
    tower, tp, cm, logits = _inputs()

    def plain(tp):
        b, classes = logits.shape
        special = tower.token_embedding(jnp.asarray([TEXT.sot_id, TEXT.eot_id, TEXT.pad_id]))
        p, out = jax.nn.softmax(logits), 0.0
        for j in range(classes):
            words = jnp.broadcast_to(tp[j], (b, *tp[j].shape))
            words = [words, cm[:, j]] if order == "t_cm" else [cm[:, j], words]
            ends = [jnp.broadcast_to(special[i], (b, n, 16)) for i, n in ((0, 1), (1, 1), (2, 14 - 2 - 5))]
            out = out + p[:, j, None, None] * tower(jnp.concatenate([ends[0], *words, *ends[1:]], 1))
        return out

    def shared(tp):
        return text_context(tower, tp, cm, logits, order)

    weights = np.random.default_rng(1).standard_normal((2, 14, 16), np.float32)
    results = []
    for function in (plain, shared):

        def scored(tp, function=function):
            out = function(tp)
            return (out * weights).sum(), out

        (_, out), gradient = jax.jit(jax.value_and_grad(scored, has_aux=True))(tp)
        results.append((out, gradient))
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-5)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-5 * np.abs(results[0][1]).max())
    assert np.abs(results[0][1]).max() > 0.1


@pytest.mark.parametrize(("order", "once", "rest"), [("t_cm", (9, 17), 60), ("cm_t", (1, 1), 76)])
def test_only_what_depends_on_the_image_is_run_per_image(order, once, rest, monkeypatch):
    tower = TextTower(replace(TextConfig.small(), context_length=77))
    shapes = []
    original = TextTower._run

    def spy(self, embeddings, beginning):
        shapes.append(embeddings.shape)
        return original(self, embeddings, beginning)

    monkeypatch.setattr(TextTower, "_run", spy)
    parameters.initialise(tower)
    out = jax.eval_shape(
        lambda tp, cm, logits: text_context(tower, tp, cm, logits, order),
        *(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((9, 16, 64), (2, 9, 16, 64), (2, 9))),
    )
    assert shapes == [(*once, 64), (18, rest, 64)]
    assert (out.shape, out.dtype) == ((2, 77, 64), jnp.bfloat16)


@pytest.mark.usefixtures("unchecked_shapes")
def test_order_and_length_are_checked():
    tower, tp, cm, logits = _inputs()
    with pytest.raises(ValueError, match="'t_cm', 'cm_t'"):
        text_context(tower, tp, cm, logits, "tcm")
    with pytest.raises(ValueError, match="12 prompt words and 2 pseudo-words"):
        text_context(tower, np.zeros((3, 12, 16), np.float32), cm, logits)


def _inputs():
    rng = np.random.default_rng(0)
    tower = parameters.initialise(TextTower(TEXT))
    shapes = ((3, 3, 16), (2, 3, 2, 16), (2, 3))
    return tower, *(jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes)
