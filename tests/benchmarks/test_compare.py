"""The table of systems: a row for each, with what a short training brings where it is asked for."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import budget, compare
from benchmarks.subject import part_flop
from benchmarks.systems import System
from mperceiver_jax.config.experiment import PhaseConfig
from mperceiver_jax.config.phases import ORDER
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.restorers.registry import RegressionModel
from tests.support.processes import ROOT
from tests.support.tiny_experiment import nine_classes, tiny_run, write_photographs
from tests.support.tiny_model import SIDE
from tests.support.tiny_restorer_run import experiment_of, tiny_regression

CONFIG = str(ROOT / "tests" / "support" / "tiny_restorer_run.py")
PERCEIVER = str(ROOT / "tests" / "support" / "tiny_experiment.py")
SIZES = ["--size=16", "--batch=2", "--repeats=1", "--per-task=2"]
PEER = "tests.support.torch_networks:SRResNet"


def test_a_row_is_measured_and_trained(tmp_path, capsys):
    train, heldout = (write_photographs(tmp_path / name, seed=seed) for seed, name in enumerate(("train", "heldout")))
    file = tmp_path / "table.json"
    arguments = [*SIZES, "--seconds=0.001", f"--output={file}", f"--images={train}", f"--heldout-images={heldout}"]
    assert compare.main([f"{CONFIG}:explicit", *arguments]) == 0
    (row,) = json.loads(file.read_text())
    # One 3x3 convolution of 4 channels on 16 x 16 pixels takes part in the count.
    assert row["GFLOP per megapixel"] > 2 * 9 * 4 * 4 * 1e-3 and row["parameters"] > 188_551
    assert row["images/s"] > 0 < row["images/s, training"] and row["GiB, training"] > 0
    assert row["updates"] == 1 and row["tasks"] == 2 and 0 < row["PSNR, restored"] < 60
    assert "tiny_restorer_run.py:explicit |" in capsys.readouterr().out


def test_mperceiver_is_a_row_as_any_other(tmp_path, monkeypatch):
    file, planned = tmp_path / "table.json", []

    def run(experiment, workdir, make_evaluator):
        planned.append(experiment)
        scalars = {f"{side}_{metric}": 20.0 for side in ("degraded", "restored") for metric in ("psnr", "ssim")}
        record = {"summary": {"seconds": 1.5}}
        return [record, record | {"scalars": scalars | {"restored_psnr": 25.0}, "tasks": {"denoise": {}}}]

    monkeypatch.setattr(budget, "run_experiment", run)  # tests/training runs all the stages
    monkeypatch.setattr(budget, "seconds_of", lambda experiment: 3.0)
    assert compare.main([PERCEIVER, *SIZES, "--seconds=2", f"--output={file}"]) == 0
    (row,) = json.loads(file.read_text())
    assert row["images/s"] > 0 < row["images/s, training"] and row["GiB, training"] > 0
    # One step of the sampler, and more.
    assert row["GFLOP per megapixel"] > part_flop(nine_classes(), SIDE)["unet"] / SIDE**2 * 1e-3 > 0
    assert row["parameters"] == parameters.count(MPerceiver(nine_classes()))
    # Two updates of every stage; the figures are the last one's.
    assert {stage.steps for stage in planned[0].stages.values()} == {2} and planned[0].evaluation.per_task == 2
    assert row["updates"] == 2 * len(ORDER) and row["s, with compiling"] == 3 and row["PSNR, restored"] == 25


def test_a_recipe_is_scaled_as_a_whole():
    recipe = tiny_run({"stages.prior.steps": 300, "stages.prior.optimizer.warmup_steps": 40, "stages.vae.steps": 0})
    shorter = budget.scaled(recipe, 0.25)
    assert [shorter.stages[name].steps for name in ORDER] == [0, 75, 1, 1, 1]
    assert shorter.stages["prior"].optimizer.warmup_steps == 10
    assert shorter.stages["prior"].ema_decay == pytest.approx(0.5**4)
    phases = (PhaseConfig(("denoise",), 10, 8), PhaseConfig(("denoise", "lowlight"), 30))
    recipe = tiny_regression()
    stage = replace(recipe.stages["regression"], curriculum=phases, steps=40)
    longer = budget.scaled(replace(recipe, stages={"regression": stage}), 2.0).stages["regression"]
    assert [(one.steps, one.period) for one in longer.curriculum] == [(20, 16), (60, 0)] and longer.steps == 80


def test_the_whole_recipe_is_estimated(monkeypatch):
    seconds = {"vae": 1.0, "prior": 2.0, "predictor": 3.0, "dual_branch": 4.0, "drm": 5.0}
    monkeypatch.setattr(System, "training_step", lambda system, name: seconds[name])
    monkeypatch.setattr(budget, "_median", lambda candidate: candidate)
    recipe = tiny_run({"stages.vae.steps": 0})
    assert budget.seconds_of(recipe) == 3 * (2 + 3 + 4 + 5)


def test_pytorch_and_ours_compute_the_same(tmp_path, capsys):
    pytest.importorskip("torch")
    file = tmp_path / "table.json"
    peer = f"--torch={CONFIG}:plain={PEER}(4, blocks=1, pair=True)"
    assert compare.main([f"{CONFIG}:plain", *SIZES, peer, f"--output={file}"]) == 0
    (row,) = json.loads(file.read_text())
    assert row["PyTorch's outputs differ by"] < 1e-5
    assert row["PyTorch's time / ours, forward"] > 0 < row["PyTorch's time / ours, training"]
    assert "PyTorch's time / ours, training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (f"{PEER}(4, blocks=1, slope=0.5)", "of the same weights, differ by"),
        (f"{PEER}(4, blocks=2)", "only it has: body.1.conv1.bias, body.1.conv1.weight, body.1.conv2.bias ..."),
        (f"{PEER}(8, blocks=1)", "of another shape: body.0.conv1.bias"),
        (f"{PEER}(4)", "TypeError: "),
        ("nowhere.at_all:Network", "ModuleNotFoundError: No module named 'nowhere' (is it on PYTHONPATH?)"),
        ("collections:OrderedDict", "gives no torch.nn.Module but a OrderedDict"),
        (f"{PEER}(width=print(1))", "numbers, strings, True, None"),
        ("no colon", "is not IMPORT.PATH:NAME"),
    ],
)
def test_networks_that_are_not_the_same_are_refused(peer, message, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(System, "training_step", lambda system, name: None)
    from benchmarks.torch_peer import Origin, compare_with_torch

    with pytest.raises(ValueError) as error:
        compare_with_torch(Origin.parse(peer), tiny_regression(), 16, 2, 1)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_networks_take_the_degradation_as_their_releases_do():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_peer import _conditions
    from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig
    from mperceiver_jax.models.restorers.mioir.prompting import task_maps
    from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
    from mperceiver_jax.models.restorers.pip import PIPConfig

    def conditions(family, network, tasks="pip"):
        model = RegressionModel(experiment_of(family, network, tasks, condition_source="label").model)
        return _conditions(model, np.random.default_rng(0).random((2, 128, 128, 3), np.float32), np.array([2, 0]))

    (weights,) = conditions("pip", PIPConfig.small())
    assert torch.equal(weights, torch.eye(5)[[2, 0]])
    assert conditions("am_promptir", AMPromptIRConfig.release()) == [["dehazy", "denoise_25"]]
    (words,) = conditions("am_promptir", AMPromptIRConfig.full())
    assert words.shape == (2, 1024)
    (guide,) = conditions("mioir_srresnet", SRResNetConfig.small("explicit"), "mioir")
    assert torch.equal(guide, torch.tensor(task_maps()[[2, 0]])[:, None])
    (guide,) = conditions("mioir_srresnet", SRResNetConfig.small("adaptive"), "mioir")
    assert guide.shape == (2, 3, 128, 128)
    assert conditions("mioir_srresnet", SRResNetConfig.small(), "mioir") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/nothing.py"], "no such configuration"),
        ([PERCEIVER, "--size=17"], "--size: MPerceiver needs a multiple of 4, not 17"),
        ([CONFIG, "--output=/nowhere/x.json"], "--output: there is no folder /nowhere"),
        ([f"{ROOT}/configs/allinone.py:sd21", "--seconds=1"], "starts from published weights"),
        ([CONFIG, "--torch=configs/pip.py:small=net:PIP"], "with one of the systems compared"),
    ],
)
def test_mistakes_cost_one_line(arguments, message, capsys):
    if "--torch" in arguments[-1]:
        pytest.importorskip("torch")
    assert compare.main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last and last.startswith("compare: ")


def test_mperceiver_has_no_pytorch_side_here():
    pytest.importorskip("torch")
    from benchmarks.torch_peer import Origin, compare_with_torch

    with pytest.raises(ValueError, match=r"no restorer by regression; see benchmarks\.unet"):
        compare_with_torch(Origin("net", "MPerceiver"), tiny_run(), 16, 2, 1)


def test_torch_is_needed_for_its_option_only(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert compare.main([CONFIG, f"--torch={CONFIG}={PEER}"]) == 2
    assert "PyTorch is not installed" in capsys.readouterr().err
    subprocess.run(
        [sys.executable, "-c", "import sys, benchmarks.compare; assert 'torch' not in sys.modules"],
        check=True,
        cwd=ROOT,
    )
