"""Restorers by regression in the releases' containers: out, in again, and used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.convert import restorer_checkpoints
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.convert.open_weights import of_workdir
from mperceiver_jax.convert.restorer_checkpoints import import_regression
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.mioir import prompting
from mperceiver_jax.models.restorers.mioir.swinir import SwinIRConfig
from mperceiver_jax.models.restorers.restormer import Restormer, RestormerConfig
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.settings import RestoreSettings
from tests.models.restorers.test_am_promptir import TINY as TINY_AM
from tests.support.tiny_restorer_run import experiment_of, finished, tiny_regression

torch = pytest.importorskip("torch")

SWIN = SwinIRConfig(width=8, heads=2, depths=(2,), window=4, tail=8, image_size=8, drop_path=0.0, prompts="explicit")


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swin") / "run"
    experiment = experiment_of("mioir_swinir", SWIN, "mioir")
    return workdir, experiment, *finished(workdir, experiment)


def loaded(module, file):
    """The parameters in a file, strictly."""
    return convert.from_torch(module, convert.read_torch(file))


def test_mioir_gets_both_sets_of_parameters_with_buffers_and_its_classifier(swin, tmp_path):
    workdir, experiment, last, average = swin
    file = tmp_path / "net_g_latest.pth"
    assert main(["export", str(workdir), f"--output={file}", "--format=release"]) == 0
    content = torch.load(file, weights_only=True)
    assert set(content) == {"params", "params_ema"}
    model = experiment.build()
    buffers = keymap(model.network, "release").buffers
    assert buffers and set(buffers) < set(content["params"])
    assert content["params"]["layers.0.residual_group.blocks.0.attn.relative_position_index"].dtype == torch.int64
    for name, values in (("params", last), ("params_ema", average)):
        found = convert.from_torch(model.network, {key: value.numpy() for key, value in content[name].items()})
        assert all(np.array_equal(value, values["network." + path]) for path, value in found.items())
    beside = loaded(model.classifier, tmp_path / "net_g_latest.classifier.pth")
    assert all(np.array_equal(value, average["classifier." + path]) for path, value in beside.items())


def test_what_is_exported_comes_back_as_a_run_that_restores_alike(swin, tmp_path):
    workdir, experiment, *_ = swin
    file = tmp_path / "swin.safetensors"
    assert main(["export", str(workdir), f"--output={file}", "--format=safetensors", "--weights=ema"]) == 0
    again = tmp_path / "again"
    (note,) = import_regression([file, tmp_path / "swin.classifier.safetensors"], again, experiment)
    assert "our own map of the tasks" in note
    image = np.random.default_rng(0).random((21, 30, 3), np.float32)
    before, after = (Restorer.from_checkpoint(place).restore(image) for place in (workdir, again))
    np.testing.assert_array_equal(before.image, after.image)
    assert before.probabilities == after.probabilities and len(after.probabilities) == 7


def test_without_a_classifier_the_task_must_be_given(swin, tmp_path):
    workdir, experiment, *_ = swin
    file = tmp_path / "swin.safetensors"
    assert main(["export", str(workdir), f"--output={file}", "--format=safetensors"]) == 0
    note, _ = import_regression([file], tmp_path / "again", experiment)
    assert "must be given" in note
    with pytest.raises(ValueError, match="needs the degradation of the images as input"):
        Restorer.from_checkpoint(tmp_path / "again")
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    rain, haze = (
        Restorer.from_checkpoint(tmp_path / "again", RestoreSettings(task=task))(image) for task in ("derain", "dehaze")
    )
    assert not np.array_equal(rain, haze)


def test_am_promptir_gets_its_dead_tensors_in_lightnings_container(tmp_path):
    experiment = experiment_of("am_promptir", TINY_AM, "pip", condition_source="label")
    _, average = finished(tmp_path / "run", experiment)
    file = tmp_path / "am.ckpt"
    assert main(["export", str(tmp_path / "run"), f"--output={file}", "--format=release"]) == 0
    content = torch.load(file, weights_only=True)
    module = experiment.build().network
    dead = keymap(module, "release").dead
    assert {f"net.{key}" for key in dead} < set(content["state_dict"])
    found = loaded(module, file)
    assert all(np.array_equal(value, average["network." + path]) for path, value in found.items())
    assert of_workdir(tmp_path / "run").averaged


def test_mistakes_are_told(swin, tmp_path, capsys):
    workdir, experiment, *_ = swin
    for arguments, message in (
        ([f"--output={tmp_path / 'x.onnx'}", "--format=release"], "must end in one of .safetensors"),
        ([f"--output={tmp_path / 'x'}", "--format=diffusers"], "for MPerceiver only"),
        ([f"--output={tmp_path / 'x.pth'}", "--format=safetensors"], "must be called NAME.safetensors"),
    ):
        assert main(["export", str(workdir), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    other = tmp_path / "other.safetensors"
    convert.write_safetensors(other, {"conv_first.weight": np.zeros((4, 3, 3, 3), np.float32)})
    with pytest.raises(ValueError, match=r"other\.safetensors: The tensors are no SwinIR.*missing"):
        import_regression([other], tmp_path / "again", experiment)
    assert not (tmp_path / "again").exists()


def test_what_is_of_no_use_is_written_back_with_its_values(tmp_path):
    experiment = experiment_of("am_promptir", TINY_AM, "pip", condition_source="label")
    module = experiment.build().network
    rng = np.random.default_rng(0)
    hollow = {path: np.zeros(value.get_value().shape) for path, value in parameters.declared(module).items()}
    state = convert.to_torch(module, hollow)
    state = {
        f"net.{key}": torch.from_numpy(rng.standard_normal(value.shape, np.float32)) for key, value in state.items()
    }
    torch.save({"state_dict": state}, tmp_path / "am.ckpt")
    import_regression([tmp_path / "am.ckpt"], tmp_path / "run", experiment)
    assert main(["export", str(tmp_path / "run"), f"--output={tmp_path / 'back.ckpt'}", "--format=release"]) == 0
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    state["net.reduce_noise_channel_1.weight"][0] = torch.inf
    torch.save({"state_dict": state}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt: net\.reduce_noise_channel_1\.weight: holds values that are not"):
        import_regression([tmp_path / "bad.ckpt"], tmp_path / "bad", experiment)
    state["net.reduce_noise_channel_1.weight"][0] = back["net.reduce_noise_channel_1.weight"][0]
    assert back.keys() == state.keys() and all(torch.equal(back[key], value) for key, value in state.items())


def srresnet(**stage):
    experiment = tiny_regression(prompts="plain")
    return replace(experiment, stages={"regression": replace(experiment.stages["regression"], **stage)})


def srresnet_state(seed: int) -> dict:
    module, rng = srresnet().build().network, np.random.default_rng(seed)
    full = {p: rng.standard_normal(v.get_value().shape, np.float32) for p, v in parameters.declared(module).items()}
    return {key: torch.from_numpy(tensor.copy()) for key, tensor in convert.to_torch(module, full).items()}


@pytest.mark.parametrize(
    ("ema_decay", "used", "told"), [(0.999, "params_ema", "are used"), (0.0, "params", "left out")]
)
def test_both_sets_are_kept_and_come_back_where_the_experiment_keeps_an_average(ema_decay, used, told, tmp_path):
    """Published figures of MiOIR are those of the last parameters; its variant `faithful` keeps no average."""
    content = {"params": srresnet_state(1), "params_ema": srresnet_state(2)}
    torch.save(content, tmp_path / "net.pth")
    (note,) = import_regression([tmp_path / "net.pth"], tmp_path / "run", srresnet(ema_decay=ema_decay))
    assert told in note and initial_params.read_experiment(tmp_path / "run").stages["regression"].ema_decay == ema_decay
    assert main(["export", str(tmp_path / "run"), f"--output={tmp_path / 'back.pth'}", "--format=release"]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    for name in content:
        expected = content[name if ema_decay else used]
        assert back[name].keys() == expected.keys()
        assert all(torch.equal(back[name][key], value) for key, value in expected.items())
    found = convert.to_torch(
        srresnet().build().network,
        {path.removeprefix("network."): value for path, value in of_workdir(tmp_path / "run").values.items()},
    )
    assert all(np.array_equal(found[key], value.numpy()) for key, value in content[used].items())


def test_of_one_set_no_average_is_made(tmp_path):
    torch.save({"params": srresnet_state(1)}, tmp_path / "net.pth")
    assert import_regression([tmp_path / "net.pth"], tmp_path / "run", srresnet(ema_decay=0.999)) == []
    assert not of_workdir(tmp_path / "run").averaged


def test_bad_weights_and_places_in_use_are_refused(tmp_path, monkeypatch):
    experiment, state = srresnet(), srresnet_state(1)
    file, output = tmp_path / "net.pth", tmp_path / "run"
    for changed, told in (
        (state["conv_hr.bias"] * np.nan, r"conv_hr\.bias: holds values that are not finite"),
        (state["conv_hr.bias"].long(), r"conv_hr\.bias: holds int64"),
    ):
        torch.save({"params": state | {"conv_hr.bias": changed}}, file)
        with pytest.raises(ValueError, match=rf"net\.pth: .*{told}"):
            import_regression([file], output, experiment)
        assert not output.exists()
    torch.save({"params": state}, file)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(OSError("full")))
        import_regression([file], output, experiment)
    assert not output.exists()
    import_regression([file], output, experiment)
    with pytest.raises(FileExistsError, match="exists already"):
        import_regression([file], output, experiment)


def test_of_two_files_none_is_left_where_one_fails(swin, tmp_path, monkeypatch):
    workdir = swin[0]
    model, values = of_workdir(workdir)[:2]
    write = restorer_checkpoints._write_pickled
    failing = lambda path, content: (
        write(path, content) if "classifier" in path.name else Path("/dev/full").write_text("x")
    )
    monkeypatch.setattr(restorer_checkpoints, "_write_pickled", failing)
    with pytest.raises(OSError, match="No space"):
        restorer_checkpoints.export_regression(model, values, tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    wrong = {path: np.asarray(value) * np.nan for path, value in values.items()}
    with pytest.raises(ValueError, match="not finite"):
        restorer_checkpoints.export_regression(model, values, tmp_path / "net.pth", averages=wrong)
    assert not list(tmp_path.iterdir())


def test_inspect_knows_restorers(swin, tmp_path, capsys):
    workdir, *_ = swin
    assert main(["export", str(workdir), f"--output={tmp_path / 'swin.pth'}", "--format=release"]) == 0
    config = f"--config={tmp_path / 'config.py'}"
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from mperceiver_jax.config.experiment import to_mapping\n"
        "from tests.convert.test_restorer_checkpoints import SWIN, experiment_of\n"
        "get_config = lambda: ConfigDict(to_mapping(experiment_of('mioir_swinir', SWIN, 'mioir')))\n"
    )
    both = [str(tmp_path / name) for name in ("swin.pth", "swin.classifier.pth")]
    assert main(["inspect", *both, config]) == 0
    told = capsys.readouterr().out
    assert "MiOIR (SwinIR), network: complete" in told and "MiOIR (SwinIR), classifier: complete" in told
    state = torch.load(tmp_path / "swin.pth", weights_only=True)["params"]
    torch.save(
        {"params": {key: value for key, value in state.items() if key != "conv_last.bias"}}, tmp_path / "less.pth"
    )
    assert main(["inspect", str(tmp_path / "less.pth"), both[1], config]) == 1
    told, error = capsys.readouterr()
    assert "less.pth: The tensors are no SwinIR" in error and "missing: conv_last.bias" in error
    assert "MiOIR (SwinIR), classifier: complete" in told
    # Of the Restormer family, keys and shapes alone tell.
    small = Restormer(RestormerConfig(dim=8, blocks=(1, 1, 1, 1), refinement_blocks=1))
    full = {path: np.ones(value.get_value().shape, np.float32) for path, value in parameters.declared(small).items()}
    full_state = convert.to_torch(small, full)
    convert.write_safetensors(tmp_path / "restormer.safetensors", full_state)
    assert main(["inspect", str(tmp_path / "restormer.safetensors")]) == 0
    told = capsys.readouterr().out
    convert.write_safetensors(
        tmp_path / "half.safetensors", {key: value for key, value in full_state.items() if key != "output.weight"}
    )
    assert main(["inspect", str(tmp_path / "half.safetensors")]) == 1
    assert "half.safetensors: The tensors are no Restormer" in capsys.readouterr().err
    assert "layout: Restormer, a restorer by regression" in told and "For a full model" not in told


def test_explicit_prompts_come_with_the_map_of_their_release(swin, tmp_path, capsys, monkeypatch):
    """Named on the command line as in training, kept in the run, and missed where it is not given."""
    workdir, *_ = swin
    assert main(["export", str(workdir), f"--output={tmp_path / 'net.pth'}", "--format=release"]) == 0
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from mperceiver_jax.config.experiment import to_mapping\n"
        "from tests.convert.test_restorer_checkpoints import SWIN, experiment_of\n"
        "get_config = lambda: ConfigDict(to_mapping(experiment_of('mioir_swinir', SWIN, 'mioir')))\n"
    )
    monkeypatch.chdir(tmp_path)
    maps = np.random.default_rng(1).random((7, 24, 24))
    np.save("type7.npy", maps)
    imported = ["import", "net.pth", "net.classifier.pth", "--config=config.py"]
    told_map = "--config.model.network.task_maps="
    assert main([*imported, "--output=without"]) == 0
    assert "not the release's" in capsys.readouterr().out
    assert main([*imported, f"{told_map}type7.npy", "--output=first"]) == 0
    assert "not the release's" not in capsys.readouterr().out
    # Neither the file nor the run's place is needed afterwards.
    Path("type7.npy").unlink()
    Path("first").rename("moved")
    model = initial_params.read_experiment("moved").build()
    assert np.array_equal(prompting.task_maps(model.network.maps), maps.astype(np.float32))
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    own, theirs = (Restorer.from_checkpoint(run, RestoreSettings(task="derain"))(image) for run in ("without", "moved"))
    assert not np.array_equal(own, theirs)
    for wrong, message in (
        (f"{told_map}absent.npy", "no such file of task maps"),
        ("--config.model.network.width=wide", "width"),
        ("--config.model.network.colour=red", "colour: no such field"),
    ):
        assert main([*imported, wrong, "--output=refused"]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not Path("refused").exists()
    assert main(["inspect", "net.pth", f"{told_map}type7.npy"]) == 1
    assert "which experiment" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*imported, "--conf.model=1", "--output=refused"])
    assert "unrecognized arguments: --conf.model=1" in capsys.readouterr().err
