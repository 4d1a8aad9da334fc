"""Restorers by regression as models: their words, where they start, their regulariser."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.models.restorers.mioir.swinir import SwinIRConfig
from mperceiver_jax.models.restorers.nafnet import NAFNetConfig
from mperceiver_jax.models.restorers.pip import PIPConfig
from mperceiver_jax.models.restorers.registry import RegressionConfig, RegressionModel, word_vectors

FIVE = tuple(task.name for task in TASK_SETS["pip"])
SEVEN = tuple(task.name for task in TASK_SETS["mioir"])


def test_words_come_from_a_file_of_embeddings(tmp_path):
    np.save(tmp_path / "words.npy", np.eye(2, 3))
    assert word_vectors(str(tmp_path / "words.npy"), ("a", "b"), 3).dtype == np.float32
    np.save(tmp_path / "ids.npy", np.ones((2, 3), int))
    with pytest.raises(ValueError, match=r"ids\.npy: int64 \(2, 3\) found, floats \(2, 3\) expected"):
        word_vectors(str(tmp_path / "ids.npy"), ("a", "b"), 3)
    (tmp_path / "text.npy").write_text("rain")
    with pytest.raises(ValueError, match=r"text\.npy: no \.npy file of text embeddings"):
        word_vectors(str(tmp_path / "text.npy"), ("a", "b"), 3)


@pytest.mark.parametrize("prompts", ["plain", "adaptive"])
def test_an_identity_to_begin_with(prompts):
    sizes = SRResNetConfig(4, 1, prompts=prompts)
    model = parameters.initialise(
        RegressionModel(RegressionConfig("mioir_srresnet", sizes, SEVEN, identity_start=True))
    )
    lq = jnp.asarray(np.random.default_rng(0).random((1, 12, 12, 3), np.float32))
    np.testing.assert_array_equal(model(lq), lq)
    with pytest.raises(ValueError, match=r"identity_start: MiOIR .SwinIR. adds no layer"):
        RegressionModel(RegressionConfig("mioir_swinir", SwinIRConfig.small(), SEVEN, identity_start=True))


def test_pip_counts_its_angles():
    sizes = PIPConfig(backbone=NAFNetConfig(4, (1,), 1, (1,)), widths=(8,), sides=(4,))
    model = parameters.initialise(RegressionModel(RegressionConfig("pip", sizes, FIVE)))
    assert float(model.penalty()) == float(model.network.angle_penalty()) > 0
