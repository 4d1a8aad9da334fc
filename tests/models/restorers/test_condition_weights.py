"""Weights of degradation classes from labels and from logits."""

import numpy as np
import pytest

from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.models.restorers.condition_weights import class_map_of, weights_of_labels, weights_of_logits

NAMES = {name: [task.name for task in tasks] for name, tasks in TASK_SETS.items()}
LOGITS = np.log([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]).astype(np.float32)


def test_labels_are_one_hot():
    np.testing.assert_array_equal(weights_of_labels(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])


def test_logits_become_probabilities_of_the_same_classes():
    np.testing.assert_allclose(weights_of_logits(LOGITS), np.exp(LOGITS), atol=1e-6)


def test_classes_are_translated_added_up_and_left_out():
    found = weights_of_logits(LOGITS, 3, (2, None, 0, 2))
    np.testing.assert_allclose(found, [[0.375, 0, 0.625], [1 / 9, 0, 8 / 9]], atol=1e-6)
    hard = weights_of_logits(LOGITS, 3, (0, None, 2, 2), hard=True)
    np.testing.assert_array_equal(hard, [[0, 0, 1], [1, 0, 0]])


def test_what_is_predicted_has_its_class_in_other_networks():
    # Haze, snow, noise, rain, motion blur, defocus blur, camera noise, raindrops, low light.
    assert class_map_of(NAMES["mperceiver"], NAMES["pip"]) == (2, None, 0, 1, 3, 3, 0, None, 4)
    assert class_map_of(NAMES["mperceiver"], NAMES["mioir"]) == (4, None, 1, 3, None, None, 1, None, 5)
    three = [name if name != "derain" else None for name in NAMES["pip"][:3]]
    assert class_map_of(NAMES["mperceiver"], three) == (2, None, 0, None, None, None, 0, None, None)
    with pytest.raises(ValueError, match="the network knows sr4; nothing of what is predicted: dehaze, desnow"):
        class_map_of(NAMES["mperceiver"], ["sr4"])


def test_a_predictor_sure_of_the_unknown_still_gives_weights():
    found = weights_of_logits(np.array([[200.0, 0.0, 0.0]], np.float32), 2, (None, 0, 1))
    np.testing.assert_allclose(found, [[0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("meaning", [(0, 1, 2), (0, 1, 2, 3), (None,) * 4, (0, 1, 2, -1)])
def test_a_meaning_that_does_not_fit_is_named(meaning):
    with pytest.raises(ValueError, match="does not lead from 4 predicted classes to 3"):
        weights_of_logits(LOGITS, 3, meaning)
