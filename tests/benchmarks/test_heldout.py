"""The table of a model on held-out photographs."""

import numpy as np

from benchmarks import heldout
from data_pipelines.config import PipelineConfig
from data_pipelines.heldout import heldout_examples
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.restore import Restorer
from tests.support.finished_run import finished_run


def test_the_table_shows_what_restoring_does_to_the_held_out_squares(tmp_path):
    finished_run(tmp_path / "run")
    restorer = Restorer.from_checkpoint(tmp_path / "run")
    rows = heldout.rows(restorer, 48, 1)
    assert [row[0] for row in rows] == [*restorer.task_names, "**mean**"]
    assert all(len(row) == len(heldout.COLUMNS) for row in rows)
    config = PipelineConfig(crop=48, image_size=48, image_scales=(1.0, 2.0), clip_size=0)
    example = heldout_examples(config, 1)[2]
    before = psnr(example["lq"], example["gt"])
    after = psnr(np.asarray(restorer.restore(example["lq"]).image), example["gt"])
    assert rows[2][1:4] == [f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]


def test_a_model_that_cannot_be_opened_is_named(tmp_path, capsys):
    assert heldout.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
