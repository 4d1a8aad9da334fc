"""A finished run is given more updates."""

from dataclasses import replace

import pytest

from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.config.experiment import RestoreConfig
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.training.metric_log import read_metrics
from mperceiver_jax.training.records import read_record
from tests.support.experiment_runs import arrays_equal, checkpointed_values, leave_out_all_but, logged_metrics, train
from tests.support.tiny_experiment import tiny_run

pytestmark = pytest.mark.usefixtures("one_device_and_a_cache")
COSINE = {"stages.vae.optimizer.schedule": "cosine"}


def test_more_updates_at_a_constant_rate_are_those_of_one_longer_run(photographs, tmp_path):
    vae = photographs | leave_out_all_but("vae")
    (short,) = train(tiny_run(vae | {"stages.vae.steps": 3}), tmp_path / "run")
    assert short["summary"]["steps"] == 3
    (longer,) = train(tiny_run(vae | {"stages.vae.steps": 5}), tmp_path / "run")
    assert longer["summary"]["steps"] == read_record(tmp_path / "run", "vae")["summary"]["steps"] == 5
    assert read_config(tmp_path / "run")["stages"]["vae"]["steps"] == 5
    train(tiny_run(vae | {"stages.vae.steps": 5}), tmp_path / "whole")
    assert logged_metrics(tmp_path / "run") == logged_metrics(tmp_path / "whole")
    assert arrays_equal(checkpointed_values(tmp_path / "run", "vae"), checkpointed_values(tmp_path / "whole", "vae"))


def test_a_schedule_that_depends_on_the_number_needs_the_flag(photographs, tmp_path):
    vae = photographs | leave_out_all_but("vae") | COSINE
    train(tiny_run(vae | {"stages.vae.steps": 3}), tmp_path)
    longer = tiny_run(vae | {"stages.vae.steps": 7})
    message = r"config\.stages\.vae\.steps: 3 in the workdir, 7 here.*--extend.*was 0\.0005 and continues at 0\.00075"
    with pytest.raises(ConfigError, match=message):
        train(longer, tmp_path)
    assert read_config(tmp_path)["stages"]["vae"]["steps"] == 3
    train(longer, tmp_path, extend=True)
    # The same command, interrupted or not, needs the flag no longer; how images are restored may change.
    train(replace(longer, restore=RestoreConfig(min_size=64)), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match=r"stages\.vae\.steps: 7 there, 4 here"):
        train(tiny_run(vae | {"stages.vae.steps": 4}), tmp_path, extend=True)
    (tmp_path / "stages" / "vae.json").write_text('{"sum')
    with pytest.raises(ValueError, match=r"stages/vae\.json: damaged .*delete it"):
        train(longer, tmp_path)


def test_a_stage_does_not_grow_under_a_later_one_but_one_that_was_left_out_is_added(photographs, tmp_path):
    fields = photographs | COSINE | {"stages.vae.steps": 3}
    train(tiny_run(fields | leave_out_all_but("vae")), tmp_path)
    both = fields | leave_out_all_but("vae", "prior")
    assert [record["summary"]["steps"] for record in train(tiny_run(both), tmp_path)] == [3, 3]
    with pytest.raises(ConfigError, match=r"stages\.vae\.steps: the stage prior has been trained.*prior.json"):
        train(tiny_run(both | {"stages.vae.steps": 4}), tmp_path, extend=True)
