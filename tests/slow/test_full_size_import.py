"""Importing the published sizes with random weights: how much memory it takes (pytest -m slow, 40 GB of disk).

Every test prints what it measured, as a multiple of the result's size in its target dtype.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mperceiver_jax.checkpoints.model_parts import part_of
from mperceiver_jax.convert.formats.safetensors_writer import write_streamed
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.convert.state_dicts import theirs
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from tests.support.processes import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MOST = 1.3
BLOCK = np.random.default_rng(0).standard_normal(10_000_019, np.float32) * np.float32(0.02)
"""Values are cut from this; its length is prime, so that no two tensors are alike."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A float32 file with everything that is published, under the release's keys; as safetensors and pickled."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("published")
    model = MPerceiver(MPerceiverConfig.sd21())
    names = keymap(model, "release")
    wanted = {path: v for path, v in parameters.declared(model).items() if part_of(path).needed}

    def tensors():
        start = 0
        for path, variable in wanted.items():
            shape = variable.get_value().shape
            value = np.resize(np.roll(BLOCK, -(start % BLOCK.size))[: int(np.prod(shape))], shape)
            start += 7919 * 131
            yield from theirs(names, path, variable.kind, value).items()

    shapes = {
        key: (np.dtype(np.float32), tensor.shape)
        for path, variable in wanted.items()
        for key, tensor in theirs(
            names, path, variable.kind, np.broadcast_to(np.float32(0), variable.get_value().shape)
        ).items()
    }
    file = folder / "published.safetensors"
    write_streamed(file, shapes, tensors())
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(file)}, folder / "published.ckpt")
    return folder


def peak(code: str, *arguments: str, devices: int = 1) -> dict:
    """What a script prints as JSON; in it `rss()` is the peak resident memory so far, in bytes."""
    # Of this process alone; what getrusage gives begins with the parent's.
    before = """
        import json, re, sys
        rss = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    """
    script = textwrap.dedent(before) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment(devices), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


IMPORT = """
    from mperceiver_jax.convert.importer import import_pretrained
    from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
    import jax; jax.devices()
    import_pretrained([sys.argv[1]], sys.argv[2], MPerceiver(MPerceiverConfig.sd21()), sys.argv[3])
    print(json.dumps({"peak": rss()}))
"""

START = """
    from dataclasses import replace
    import jax, jax.numpy as jnp
    from mperceiver_jax.config.experiment import Experiment
    from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
    from mperceiver_jax.distributed import sharding, weights
    from mperceiver_jax.distributed.sharding import MeshConfig
    from tests.support.tiny_model import tiny_experiment
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=int(sys.argv[2])))
    experiment = replace(tiny_experiment(MPerceiverConfig.sd21()), pretrained=sys.argv[1])
    def place(path, value):
        where = sharding.ParameterLayout(mesh).sharding(path, value.shape, 2)
        return sharding.place(value, where, jnp.bfloat16)
    values = weights.init_params(experiment, MPerceiver(experiment.model), place)
    held = dict.fromkeys(jax.devices(), 0)
    for value in values.values():
        for shard in value.addressable_shards:
            held[shard.device] += shard.data.nbytes
    total = sum(value.nbytes for value in values.values())
    fullest = {"held": sum(held.values()), "most": max(held.values())}
    print(json.dumps({"peak": rss(), "total": total, **fullest}))
"""


@pytest.mark.parametrize(
    ("form", "dtype"), [("safetensors", "bfloat16"), ("ckpt", "bfloat16"), ("safetensors", "stored")]
)
def test_importing_takes_little_memory(published, form, dtype, tmp_path):
    found = peak(IMPORT, str(published / f"published.{form}"), str(tmp_path / "pretrained"), dtype)
    result = sum(file.stat().st_size for file in (tmp_path / "pretrained").rglob("*") if file.is_file())
    share = found["peak"] / result
    print(f"\n{form} to {dtype}: peak {found['peak'] / 1e9:.2f} GB, {share:.2f} of the result's {result / 1e9:.2f} GB")
    assert share <= MOST


@pytest.mark.parametrize("devices", [1, 8])
def test_starting_takes_the_size_of_the_model(published, devices, tmp_path):
    peak(IMPORT, str(published / "published.safetensors"), str(tmp_path / "pretrained"), "bfloat16")
    found = peak(START, str(tmp_path / "pretrained"), str(devices), devices=devices)
    # Virtual devices share the host's memory, and small tensors are on each of them.
    share, most = found["peak"] / found["held"], found["most"] / found["total"]
    print(
        f"\n{devices} device(s): peak {found['peak'] / 1e9:.2f} GB, {share:.2f} of what the devices hold; "
        f"the fullest has {most:.2f} of the model's {found['total'] / 1e9:.2f} GB"
    )
    assert share <= MOST
    assert devices == 1 or most < 0.35
