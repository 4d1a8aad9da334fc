"""A predictor that is certain of one degradation, and the table of predicted, true and wrong ones."""

import numpy as np
import pytest

from benchmarks import conditions
from mperceiver_jax.restore import Restorer
from tests.support.finished_run import finished_run


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    finished_run(workdir)
    return Restorer.from_checkpoint(workdir)


def test_a_certain_predictor_predicts_one_degradation(restorer):
    image = np.random.default_rng(0).random((48, 48, 3), np.float32)
    for label in (0, 8):
        changed = conditions.certain(restorer, label)
        found = changed.restore(image)
        assert found.probabilities[restorer.task_names[label]] > 0.999
    before = restorer.restore(image)
    assert max(before.probabilities.values()) < 0.999  # The model itself is unchanged.
    assert not np.array_equal(before.image, found.image)


def test_the_table_has_a_row_for_every_degradation(restorer):
    rows = conditions.rows(restorer, 48, 1)
    assert [row[0] for row in rows] == [*restorer.task_names, "**mean**"]
    assert all(len(row) == len(conditions.COLUMNS) for row in rows)


def test_a_model_that_cannot_be_opened_is_named(tmp_path, capsys):
    assert conditions.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
