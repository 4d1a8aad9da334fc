"""Errors that say where: in which file, and how far the run was."""

import pytest

from data_pipelines.stored.manifest import write_manifest
from mperceiver_jax.checkpoints.workdir import bind_workdir
from mperceiver_jax.errors import ConfigError, reraise
from mperceiver_jax.evaluate.report import write_report
from mperceiver_jax.training.records import write_record
from tests.support.full_disk import disk_of

WRITERS = {
    "manifest.json": lambda folder: write_manifest(folder, {"seed": 1}),
    "config.json": lambda folder: bind_workdir(folder, {"seed": 1}),
    "stages/vae.json": lambda folder: write_record(folder, "vae", {}),
    "report.json": lambda folder: write_report({}, folder),
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_full_disk_is_reported_with_the_file(tmp_path, file):
    with disk_of(0), pytest.raises(OSError, match=f"File too large: '{tmp_path / file}'"):
        WRITERS[file](tmp_path)


def test_an_error_keeps_its_kind_and_gets_another_message():
    tell = lambda error: f"vae: {error}"
    with pytest.raises(OSError, match=r"^vae: there is no such file$"), reraise(tell):
        raise FileNotFoundError("there is no such file")
    with pytest.raises(ValueError, match=r"^vae: 'utf-8' codec can't decode byte"), reraise(tell):
        b"\xff".decode()
    with pytest.raises(ConfigError, match=r"^config\.seed: missing$"), reraise(tell):
        raise ConfigError("config.seed: missing")
