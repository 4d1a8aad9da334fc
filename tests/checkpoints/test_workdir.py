"""A workdir belongs to one configuration."""

import json

import pytest

from mperceiver_jax.checkpoints.bind import differences
from mperceiver_jax.checkpoints.workdir import bind_workdir, read_config

CONFIG = {"train": {"batch_size": 8, "crops": (64, 32)}, "log": {"every": 10}, "logger": 1}


def test_compare_names_fields_and_leaves_out_what_may_change():
    other = {"train": {"batch_size": 4, "crops": [64, 32]}, "log": {"every": 20}, "logger": 2, "seed": 1}
    found = differences(CONFIG, other, may_change=("log",))
    assert [difference.field for difference in found] == ["logger", "seed", "train.batch_size"]
    assert found[2][1:] == (8, 4)
    assert found[1].old == "(absent)"


def test_the_same_configuration_comes_back(tmp_path):
    workdir = tmp_path / "new" / "run"
    bind_workdir(workdir, CONFIG)
    bind_workdir(workdir, CONFIG)
    assert read_config(workdir)["train"] == {"batch_size": 8, "crops": [64, 32]}
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_another_configuration_is_refused_and_nothing_is_changed(tmp_path):
    bind_workdir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"(?s)another configuration.*train\.batch_size: 8 there, 4 here"):
        bind_workdir(tmp_path, {**CONFIG, "train": {"batch_size": 4, "crops": (64, 32)}})
    assert read_config(tmp_path)["train"]["batch_size"] == 8


def test_what_may_change_is_taken_over(tmp_path):
    bind_workdir(tmp_path, CONFIG)
    bind_workdir(tmp_path, {**CONFIG, "log": {"every": 99}}, may_change=("log.every",))
    assert read_config(tmp_path)["log"] == {"every": 99}


def test_directories_of_something_else_are_refused(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        bind_workdir(foreign, CONFIG)
    assert not (foreign / "config.json").exists()
    (foreign / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"]}))
    with pytest.raises(ValueError, match="not written by this program"):
        bind_workdir(foreign, CONFIG)
    (foreign / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_config(foreign)
    with pytest.raises(ValueError, match="is a file"):
        bind_workdir(foreign / "thesis.tex", CONFIG)
    with pytest.raises(FileNotFoundError, match="no run"):
        read_config(tmp_path)


def test_a_run_that_died_while_claiming_does_not_block_the_next(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"written')
    bind_workdir(tmp_path, CONFIG)
    assert read_config(tmp_path)["logger"] == 1
