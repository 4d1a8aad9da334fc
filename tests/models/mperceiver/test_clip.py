"""The CLIP towers against the release's fixtures and transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower, VisionConfig, VisionTower
from tests.support.parity_fixtures import fixture, nhwc

VISION = VisionConfig(image_size=12, patch_size=4, width=24, layers=2, heads=3, embed_width=10)
TEXT = TextConfig(width=24, layers=3, layers_run=2, heads=3, vocabulary=11, context_length=12,
                  projection_width=10, sot_id=9, eot_id=10)  # fmt: skip


def test_sizes_of_the_published_towers():
    vision, text = VisionTower(VisionConfig.vit_h_14()), TextTower(TextConfig.vit_h_14())
    assert (parameters.count(vision), len(parameters.declared(vision))) == (632_076_800, 392)
    assert (parameters.count(text), len(parameters.declared(text))) == (354_032_641, 294)
    # Published without the parts that are not run.
    assert parameters.count(TextTower(TextConfig.sd21())) == 340_387_840
    assert TextConfig.sd21().layers_run == TextConfig.vit_h_14().layers_run == 23
    assert list(TextConfig.sd21().empty_caption()) == [49406, 49407] + [0] * 75


def test_vision_tower_equals_the_fixture():
    facts = fixture("07_predictor_vision")
    config = VisionConfig(image_size=56, patch_size=14, width=48, layers=2, heads=4, embed_width=40)
    tower = convert.load(VisionTower(config), facts.substate("model."), layout="open_clip")
    facts.check("embedding", jax.jit(tower)(nhwc(facts.inputs["image"])))


def test_text_tower_equals_the_fixture():
    facts = fixture("06_text_branch")
    config = TextConfig(width=48, layers=3, layers_run=2, heads=4, vocabulary=64, projection_width=24)
    state = facts.substate("cond_stage_model.model.")
    tower = convert.load(TextTower(config), state, layout="open_clip")
    facts.check("plain_hidden", jax.jit(tower.encode)(facts.inputs["plain_token_ids"]))
    back = convert.dump(tower, layout="open_clip")
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) and back[key].shape == state[key].shape for key in back)


def test_vision_tower_equals_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=24, intermediate_size=96, projection_dim=10, num_hidden_layers=2,
            num_attention_heads=3, image_size=12, patch_size=4, hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    state = _random_state(torch, theirs)
    ours = convert.load(VisionTower(VISION), state, layout="transformers")
    images = np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images)).image_embeds.numpy()
    assert _relative(jax.jit(ours)(nhwc(images)), expected) < 1e-4
    _same(convert.dump(ours, layout="transformers"), state)


@pytest.mark.parametrize("nested", [True, False])
def test_text_tower_equals_transformers(nested):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    # One layer fewer than ours declares to run would not load: their encoder has exactly those run.
    config = dataclasses.replace(TEXT, layers=2, projection_width=None)
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=11, hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=12, hidden_act="gelu", bos_token_id=9, eos_token_id=10, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    bare = {key.removeprefix("text_model."): value for key, value in _random_state(torch, theirs).items()}
    state = {f"text_model.{key}": value for key, value in bare.items()}
    ours = convert.load(TextTower(config), state if nested else bare, layout="transformers")
    ids = np.random.default_rng(0).integers(0, 11, (2, 12), np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    assert _relative(jax.jit(ours.encode)(ids), expected) < 1e-4
    _same(convert.dump(ours, layout="transformers"), state)


def test_text_projection_and_scale_of_a_whole_clip_model():
    """transformers stores the projections transposed, and both towers in one file."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=sizes | {"vocab_size": 11, "max_position_embeddings": 12},
            vision_config=sizes | {"num_hidden_layers": 2, "image_size": 12, "patch_size": 4},
            projection_dim=10,
        )
    )
    state = _random_state(torch, whole)
    text = convert.load(TextTower(TEXT), state, layout="transformers")
    vision = convert.load(VisionTower(VISION), state, layout="transformers")
    assert np.array_equal(text.text_projection[...], state["text_projection.weight"].T)
    assert np.array_equal(vision.proj[...], state["visual_projection.weight"].T)
    both = convert.dump(text, layout="transformers") | convert.dump(vision, layout="transformers")
    _same(both, state)


def test_what_follows_an_encoded_prefix_equals_the_whole_sequence():
    tower = parameters.initialise(TextTower(TEXT))
    x = np.random.default_rng(0).standard_normal((2, 12, 24), np.float32)
    whole = jax.jit(tower)(x)
    prefix = jax.jit(tower.encode_prefix)(x[:, :5])
    assert [layer.keys.shape for layer in prefix.layers] == [(2, 5, 24)] * 2
    np.testing.assert_allclose(prefix.outputs, whole[:, :5], atol=1e-5)
    np.testing.assert_allclose(jax.jit(tower.encode_after)(prefix, x[:, 5:]), whole[:, 5:], atol=1e-5)


def test_last_block_and_projection_are_not_run():
    tower = parameters.initialise(TextTower(TEXT))
    ids = np.zeros((1, 12), np.int32)
    structure, params = parameters.split(tower)
    gradients = jax.jit(jax.grad(lambda p: jnp.square(parameters.merge(structure, p).encode(ids)).sum()))(params)
    idle = {path for path, gradient in gradients.items() if not np.any(gradient)}
    last = {path for path in params if path.startswith("transformer.resblocks.2.")}
    assert idle >= last | {"text_projection", "logit_scale"}
    assert not any(path.startswith("transformer.resblocks.1.mlp") for path in idle)


def test_empty_caption():
    ids = TEXT.empty_caption()
    assert list(ids) == [9, 10] + [0] * 10
    tower = parameters.initialise(TextTower(TEXT))
    found = jax.eval_shape(lambda: tower.encode(ids[None], jnp.bfloat16))
    assert (found.shape, found.dtype) == ((1, 12, 24), jnp.bfloat16)


@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="16x12, 12x12 expected"):
        VisionTower(VISION)(np.zeros((1, 16, 12, 3), np.float32))
    with pytest.raises(ValueError, match="13 tokens, at most 12"):
        TextTower(TEXT)(np.zeros((1, 13, 24), np.float32))


def _random_state(torch, model) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    for value in model.parameters():
        torch.nn.init.normal_(value, 0.05, 0.3)
    return {key: value.numpy() for key, value in model.state_dict().items()}


def _same(found, expected) -> None:
    expected = {key: value for key, value in expected.items() if not key.endswith("position_ids")}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def _relative(found, expected) -> float:
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))
