"""Parameters that a run starts from: pretrained weights, imported before or on first use, spread over devices."""

import os
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mperceiver_jax import convert
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.convert import importer
from mperceiver_jax.convert.importer import import_pretrained
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from tests.support.processes import run_processes
from tests.support.tiny_model import tiny_config, tiny_experiment

ADAPTERS = ("structcond_stage_model.", "CM_Inv.", "tp", "drm.", "classifier.fc")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(model, its values, a file in the release's layout that lacks the adapters)."""
    model = MPerceiver(tiny_config())
    values = parameters.initial_values(model, 3, lambda path, value: value + np.float32(0.5))
    tensors = convert.to_torch(model, values)
    path = tmp_path_factory.mktemp("published") / "pretrained.safetensors"
    save_file({k: v for k, v in tensors.items() if ".spade." not in k and not k.startswith(ADAPTERS)}, path)
    return model, values, path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mperceiver_jax" / "pretrained"


def start(model, pretrained, place=lambda path, value: value) -> dict:
    directory = importer.pretrained_directory(str(pretrained), model).path
    return initial_params.init_params(replace(tiny_experiment(), pretrained=str(directory), seed=5), model, place)


def check(started, model, values) -> None:
    """Published where published, initial elsewhere."""
    initial = parameters.initial_values(model, 5, lambda path, value: value)
    assert list(started) == list(initial)
    adapters = 0
    for path, value in started.items():
        added = ".spade." in path or path.startswith(("ir_adapter", "cm_inv", "tp", "drm", "predictor.fc"))
        adapters += added
        assert np.array_equal(value, (initial if added else values)[path]), path
    assert 0 < adapters < len(started)


def test_a_directory_of_pretrained_weights_is_taken_as_it_is(published, cache, tmp_path):
    model, values, path = published
    import_pretrained([str(path)], tmp_path / "pretrained", model)
    check(start(model, tmp_path / "pretrained"), model, values)
    assert not cache.exists()


def test_published_weights_are_converted_on_first_use_and_once(published, cache, monkeypatch, capsys):
    model, values, path = published
    check(start(model, path), model, values)
    assert "importing" in capsys.readouterr().out
    (kept,) = [entry for entry in cache.iterdir() if entry.is_dir()]
    with monkeypatch.context() as patch:
        patch.setattr(importer, "import_pretrained", None)
        check(start(model, path), model, values)
        assert capsys.readouterr().out == ""
    # What a killed conversion left goes with the next.
    shutil.rmtree(kept)
    (cache / f"{kept.name}.dead.partial").mkdir()
    check(start(model, path), model, values)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == [kept]
    # What was broken off is made again.
    (kept / "record.json").unlink()
    for file in kept.rglob("*"):
        file.is_file() and file.unlink()
    path.touch()
    check(start(model, path), model, values)
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 2


def test_only_the_weight_files_tell_conversions_apart(published, tmp_path, monkeypatch):
    model, _, path = published
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(path, folder / "all.safetensors")
    (tmp_path / "link").symlink_to(folder)
    known = importer._identity([str(folder)], model)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.lock").touch()
    (folder / "README.md").touch()
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "weights", "weights/", "link", "link/all.safetensors"):
        assert importer._identity([name], model) == known, name
    os.utime(folder / "all.safetensors", ns=(0, 0))
    assert importer._identity(["link"], model) != known


def test_pretrained_weights_that_cannot_be_used_are_refused(published, cache, tmp_path):
    model, _, path = published
    for pretrained, told in [
        (tmp_path / "absent.safetensors", r"absent\.safetensors: no such file"),
        (tmp_path, "no weights there"),
    ]:
        with pytest.raises((FileNotFoundError, ValueError), match=told):
            start(model, pretrained)
    import_pretrained([str(path)], tmp_path / "pretrained", model)
    tiny = tiny_config()
    longer = replace(tiny.predictor, vision=replace(tiny.predictor.vision, layers=2))
    with pytest.raises(ConfigError, match=r"the image tower is half there: 12 of \d+ parameters are missing"):
        start(MPerceiver(replace(tiny, predictor=longer)), tmp_path / "pretrained")
    with pytest.raises(ConfigError, match=r"of another model: text_encoder\.token_emb.* \(expected: \(5, 16\)\)"):
        start(MPerceiver(replace(tiny, text=replace(tiny.text, vocabulary=5))), tmp_path / "pretrained")
    with pytest.raises(ConfigError, match=r"of another model: vae\..*expected: nothing of that name"):
        start(MPerceiver(replace(tiny, vae=replace(tiny.vae, num_res_blocks=0))), tmp_path / "pretrained")


def test_no_device_ever_holds_the_whole(published, cache, monkeypatch):
    model, values, path = published
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    largest = {}
    whole = jax.device_put

    def watched(value, *args, **kwargs):
        largest["device_put"] = max(largest.get("device_put", 0), np.size(value))
        return whole(value, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", watched)

    def place(path, value):
        return sharding.ParameterLayout(mesh, threshold=256).place(path, value)

    started = start(model, path, place)
    total = sum(value.nbytes for value in started.values())
    held = dict.fromkeys(jax.devices(), 0)
    for path, value in started.items():
        assert np.array_equal(value, values[path]) or ".spade." in path or path.split(".")[0] not in ("unet", "vae")
        for shard in value.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert len(held) == 8 and max(held.values()) < 0.25 * total
    assert not largest


def test_processes_convert_once_and_fail_together(published, cache, tmp_path):
    _, values, path = published
    code = """
        import sys
        from dataclasses import replace
        import jax, numpy as np
        from mperceiver_jax.models.mperceiver.model import MPerceiver
        from mperceiver_jax.checkpoints import initial_params
        from mperceiver_jax.convert.importer import pretrained_directory
        from mperceiver_jax.distributed import sharding
        from mperceiver_jax.distributed.runtime import on_every_process
        from tests.support.tiny_model import tiny_config, tiny_experiment

        mesh = sharding.make_mesh()
        place = lambda path, value: sharding.place(value, sharding.replicated(mesh))
        model = MPerceiver(tiny_config())
        start = lambda pretrained: initial_params.init_params(
            replace(tiny_experiment(), pretrained=str(pretrained_directory(pretrained, model).path)), model, place)
        try:
            start(sys.argv[1] + ".absent")
        except (ValueError, OSError) as error:
            print("refused", "no such file" in str(error))
        print("sum", float(np.asarray(start(sys.argv[1])["vae.decoder.conv_in.weight"]).sum()))

        def fails_in_one():
            if jax.process_index() == 1:
                raise OSError("disk full")
        try:
            on_every_process(fails_in_one)
        except (ValueError, OSError) as error:
            print(type(error).__name__, error)
    """
    outputs = run_processes(code, processes=2, devices=1, args=[str(path)])
    assert sum(output.count("importing: kept in") for output in outputs) == 1
    expected = float(values["vae.decoder.conv_in.weight"].sum())
    for output in outputs:
        assert "refused True" in output
        (told,) = [line for line in output.splitlines() if line.startswith("sum ")]
        assert float(told.split()[1]) == expected
    assert "ValueError failed in process 1" in outputs[0] and "OSError disk full" in outputs[1]
