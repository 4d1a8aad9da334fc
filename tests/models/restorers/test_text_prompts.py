"""Degradations in words, against transformers' CLIP."""

import numpy as np
import pytest

from data_pipelines.tasks import TASKS
from mperceiver_jax import convert
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower
from mperceiver_jax.models.restorers.text_prompts import (
    caption_ids,
    caption_vectors,
    random_text_embeddings,
    release_ids,
)

CONFIG = TextConfig(width=16, layers=2, layers_run=1, heads=2, context_length=9, projection_width=12)
NAMES = [task.name for task in TASKS]


def test_every_task_has_a_caption_that_fits():
    ids = caption_ids(NAMES, CONFIG)
    assert ids.shape == (len(TASKS), 9)
    assert ids.max() < 49408
    assert len({tuple(row) for row in ids}) == len(TASKS)
    assert ids[NAMES.index("denoise")].tolist() == [49406, 5919, 31218, 9307, 49407, 0, 0, 0, 0]


def test_vectors_equal_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.CLIPTextConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        projection_dim=12,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    theirs = transformers.CLIPTextModelWithProjection(settings).eval()
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    tower = TextTower(CONFIG)
    convert.load(tower, state | {"logit_scale": np.zeros((), np.float32)}, layout="transformers")
    ids = caption_ids(NAMES, CONFIG)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids.astype(np.int64))).text_embeds.numpy()
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(caption_vectors(tower, NAMES), wanted, atol=1e-5)


def test_stand_ins_are_unit_vectors_of_the_names():
    vectors = random_text_embeddings(NAMES, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    assert np.abs(vectors @ vectors.T - np.eye(len(NAMES))).max() < 0.5
    np.testing.assert_array_equal(random_text_embeddings(NAMES[3:5], 64), vectors[3:5])


def test_the_releases_classes():
    assert release_ids(["derain", "denoise_15"]).tolist() == [
        [49406, 839, 2210, 49407, 0, 0, 0, 0],
        [49406, 1177, 78, 1479, 318, 272, 276, 49407],
    ]


def test_unknown_names_and_towers():
    with pytest.raises(ValueError, match=r"no caption for dedust; there are dehaze"):
        caption_ids(["dedust"], CONFIG)
    with pytest.raises(ValueError, match="no release class for desnow"):
        release_ids(["desnow"])
    with pytest.raises(ValueError, match="vocabulary of 49408"):
        caption_ids(NAMES, TextConfig.small())
    with pytest.raises(ValueError, match="no projection"):
        caption_vectors(TextTower(TextConfig.sd21()), NAMES)
