"""Weights of degradation classes from labels and from logits."""

import numpy as np
import pytest

from mperceiver_jax.models.conditions import weights_of_labels, weights_of_logits

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


def test_a_predictor_sure_of_the_unknown_still_gives_weights():
    found = weights_of_logits(np.array([[200.0, 0.0, 0.0]], np.float32), 2, (None, 0, 1))
    np.testing.assert_allclose(found, [[0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("meaning", [(0, 1, 2), (0, 1, 2, 3), (None,) * 4, (0, 1, 2, -1)])
def test_a_meaning_that_does_not_fit_is_named(meaning):
    with pytest.raises(ValueError, match="does not lead from 4 predicted classes to 3"):
        weights_of_logits(LOGITS, 3, meaning)
