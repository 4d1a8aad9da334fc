"""Exporting the model at its published size: what is written, and in how much memory (pytest -m slow)."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.diffusers.components import library_components
from mperceiver_jax.convert.keymaps import registry
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# In a process of its own, whose peak is the export's. Values are drawn when they are asked for.
EXPORT = """
import resource, sys
from functools import partial
from pathlib import Path
from mperceiver_jax.convert.export import export
from mperceiver_jax.checkpoints.lazy import LazyMapping
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig

model = MPerceiver(MPerceiverConfig.sd21())
declared = parameters.declared(model)
values = LazyMapping(
    {path: partial(parameters.initial_value, path, variable, 0) for path, variable in declared.items()}
)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
before = peak()
export(model, values, Path(sys.argv[1]), sys.argv[2], "bfloat16")
print(before, peak())
"""


@pytest.mark.parametrize("form", ["release", "diffusers"])
def test_memory_of_a_full_size_export(form, tmp_path, capsys):
    output = tmp_path / ("exported" if form == "diffusers" else "exported.safetensors")
    run = subprocess.run([sys.executable, "-c", EXPORT, output, form], capture_output=True, text=True, check=True)
    before, after = map(float, run.stdout.split())
    files = sorted(tmp_path.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    with capsys.disabled():
        print(f"\n{form}: {size:.2f} GB written; peak memory {before:.2f} GB before, {after:.2f} GB after", end="")
    assert after - before < 0.25 * size
    keys = [key for file in files for key in header(file) if key != "__metadata__"]
    drm = [key for key in keys if key.startswith("drm.")]
    tables = 12 if form == "release" else 0
    # The towers of transformers store queries, keys and values apart.
    apart = 0 if form == "release" else 4 * (32 + 23)
    assert len(keys) == len(set(keys)) == 862 + 248 + 294 + 243 + 392 + 4 + 49 + 1 + len(drm) + tables + apart


def test_full_size_directories_are_what_the_libraries_build():
    """Names and shapes of the classes that `config.json` asks for, without any values."""
    torch = pytest.importorskip("torch")
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    for home in library_components(MPerceiver(MPerceiverConfig.sd21())):
        with torch.device("meta"):
            if home.layout == "diffusers":
                cls = getattr(diffusers, home.config["_class_name"])
                built = cls.from_config(home.config)
            else:
                cls = getattr(transformers, home.config["architectures"][0])
                built = cls(cls.config_class(**home.config))
        names = registry.keymap(home.module, home.layout)
        ours, written = {}, set(home.paths())
        for path, variable in parameters.declared(home.module).items():
            if home.root + path in written:
                hollow = np.broadcast_to(np.False_, variable.get_value().shape)
                ours |= convert.state_dicts.theirs(names, path, variable.kind, hollow)
        # transformers drops the prefix of a text model since 5.6, and reads both spellings.
        bare = lambda key: key.removeprefix("text_model.")
        expected = {bare(key): value.shape for key, value in built.state_dict().items() if "position_ids" not in key}
        assert {bare(key): value.shape for key, value in ours.items()} == expected


def header(file) -> dict:
    with open(file, "rb") as content:
        return json.loads(content.read(int.from_bytes(content.read(8), "little")))
