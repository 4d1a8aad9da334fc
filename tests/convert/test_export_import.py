"""What is exported in any form is imported again bit for bit, and exported from there once more."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.convert.export import export
from mperceiver_jax.convert.importer import import_pretrained
from mperceiver_jax.convert.open_weights import open_weights
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from tests.support.tiny_model import tiny_config

CONFIG = """
from dataclasses import replace
from ml_collections import ConfigDict
from mperceiver_jax.config.experiment import to_mapping
from tests.support.tiny_model import tiny_config

def get_config(variant=""):
    tiny = tiny_config()
    return ConfigDict({"model": to_mapping(replace(tiny, text=replace(tiny.text, layers=3, projection_width=12)))})
"""


@pytest.fixture(scope="module")
def model():
    """With a text tower that has more than is run, as OpenCLIP's, whose rest transformers has no place for."""
    tiny = tiny_config()
    return MPerceiver(replace(tiny, text=replace(tiny.text, layers=3, projection_width=12)))


@pytest.fixture(scope="module")
def values(model):
    rng = np.random.default_rng(5)
    return {
        path: np.asarray(rng.standard_normal(variable.get_value().shape, np.float32))
        for path, variable in parameters.declared(model).items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", ["release", "safetensors", "diffusers"])
def test_exported_then_imported_is_bit_identical(form, dtype, model, values, tmp_path):
    output = tmp_path / ("exported" if form == "diffusers" else "exported.safetensors")
    written = export(model, values, output, form, dtype)
    import_pretrained([str(path) for path in written], tmp_path / "pretrained", model, say=lambda text: None)
    found = dict(PretrainedDirectory(tmp_path / "pretrained").values())
    assert found.keys() == values.keys()
    for path, value in values.items():
        expected = value.astype(jnp.dtype(dtype))
        assert found[path].dtype == expected.dtype and np.array_equal(found[path], expected), path


def test_pretrained_weights_are_exported_from_their_directory(model, values, tmp_path, capsys):
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    export(model, values, first, "safetensors")
    import_pretrained([str(first)], tmp_path / "pretrained", model, say=lambda text: None)
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    arguments = ["export", str(tmp_path / "pretrained"), f"--output={again}", "--format=safetensors"]
    assert main([*arguments, f"--config={config}"]) == 0
    assert again.read_bytes() == first.read_bytes()
    again.unlink()
    # Of the published sizes it is not; and there are no averages in it.
    for more, message in ([], "--config=FILE:VARIANT"), (["--weights=ema"], "for training runs"):
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err and not again.exists()


def test_pretrained_weights_are_read_one_by_one(model, values, tmp_path):
    export(model, values, tmp_path / "all.safetensors", "safetensors")
    import_pretrained([str(tmp_path / "all.safetensors")], tmp_path / "pretrained", model, say=lambda text: None)
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    weights = open_weights(tmp_path / "pretrained", config=str(config))
    assert set(weights.values) == set(values)
    assert np.array_equal(weights.values["tp"], values["tp"])
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        open_weights(Path("nowhere"))
