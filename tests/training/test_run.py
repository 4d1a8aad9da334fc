"""Whole runs of the tiny experiment: what they leave behind and how they continue.

On one device and with a shared compilation cache: what differs between the runs is not what is compiled.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints
from mperceiver_jax.config.phases import ORDER
from mperceiver_jax.distributed.runtime import Preempted
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.evaluate.run_report import write_run_report
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.training import records, run
from mperceiver_jax.training.metric_log import read_metrics
from tests.support.experiment_runs import (
    Scores,
    arrays_equal,
    checkpointed_values,
    leave_out_all_but,
    logged_metrics,
    train,
)
from tests.support.processes import run_processes
from tests.support.tiny_experiment import STEPS, tiny_run

AVERAGED = "dual_branch"
pytestmark = pytest.mark.usefixtures("one_device_and_a_cache")


@pytest.fixture(scope="module")
def whole(photographs):
    return tiny_run(photographs | {f"stages.{AVERAGED}.ema_decay": 0.5, "stages.prior.ema_decay": 0.0})


@pytest.fixture(scope="module")
def finished(whole, tmp_path_factory):
    """Workdir and records of an uninterrupted run with its real evaluation."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    records = run.run_experiment(whole, workdir, HeldoutEvaluator)
    write_run_report(whole, records, workdir)
    return workdir, records


def test_a_run_leaves_everything_behind(whole, finished):
    workdir, records = finished
    assert [record["summary"]["name"] for record in records] == list(ORDER)
    for record in records:
        summary = record["summary"]
        assert summary["steps"] == STEPS and summary["skipped"] == 0 and summary["seconds"] > 0
        assert np.isfinite([summary["first_loss"], summary["last_loss"]]).all()
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [(s, k + 1) for s in ORDER for k in range(STEPS)]
    assert all(row.keys() >= {"loss", "grad_norm", "learning_rate", "time"} for row in rows)
    report = json.loads((workdir / "report.json").read_text())
    assert report["tasks"].keys() == {"dehaze", "denoise"}
    for task in report["tasks"].values():
        assert task["images"] == whole.evaluation.per_task
        assert task.keys() >= {"degraded", "restored"}
        assert np.isfinite([task[side][m] for side in ("degraded", "restored") for m in ("psnr", "ssim")]).all()
    assert report["tasks"] == records[-1]["tasks"]
    assert 0 <= report["predictor"]["accuracy"] <= 1
    assert np.sum(report["predictor"]["confusion"]) == 2 * whole.evaluation.per_task
    _, declared = parameters.split(MPerceiver(whole.model))
    assert report["parameters"]["total"] == sum(leaf.size for leaf in declared.values())
    assert report["seconds"].keys() == set(ORDER) and "cpu" in report["device"]
    readable = (workdir / "report.md").read_text()
    assert all(name in readable for name in (*ORDER, "dehaze", "denoise"))
    images = {path.name for path in (workdir / "samples").glob("*.png")}
    assert images >= {"vae.png", "dual_branch.png", "drm.png", "drm_dehaze.png", "drm_denoise.png"}
    assert all(list((workdir / "tensorboard" / name).glob("*tfevents*")) for name in ORDER)
    assert "ir_adapter" in (workdir / "parameters.txt").read_text()


def test_averages_are_what_later_stages_build_on(whole, finished):
    workdir, _ = finished
    average = checkpointed_values(workdir, AVERAGED, "ema")
    assert not arrays_equal(average, checkpointed_values(workdir, AVERAGED))
    assert arrays_equal(average, initial_params.trained_values(workdir, AVERAGED))
    values = parameters.initial_values(MPerceiver(whole.model), whole.seed, lambda path, value: np.asarray(value))
    for name in ORDER[:-1]:
        values |= initial_params.trained_values(workdir, name)
    with Checkpoints(initial_params.checkpoint_folder(workdir, "drm"), read_only=True) as checkpoints:
        identity = checkpoints.metadata(STEPS)["frozen_fingerprint"]
    assert identity == fingerprint({k: v for k, v in values.items() if not k.startswith("drm.")})


def test_a_finished_run_trains_nothing_and_writes_its_report_again(whole, finished, tmp_path, monkeypatch, capsys):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (workdir / "report.json").unlink()
    before = logged_metrics(workdir)
    monkeypatch.setattr(run, "StageTrainer", None)
    records = train(whole, workdir)
    assert records == json.loads(json.dumps(finished[1]))
    write_run_report(whole, records, workdir)
    assert json.loads((workdir / "report.json").read_text())["tasks"] == records[-1]["tasks"]
    assert logged_metrics(workdir) == before
    assert capsys.readouterr().out.count("done before") == len(ORDER)
    # Nothing may stand in silently for parameters that are gone.
    shutil.rmtree(initial_params.checkpoint_folder(workdir, "prior"))
    with pytest.raises(CheckpointError, match=r"prior is recorded as done, but .* holds no complete checkpoint"):
        train(whole, workdir)


def test_interrupted_anywhere_a_run_repeats_itself_bit_for_bit(whole, finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    # In the autoencoder; in the dual branch, after the rest of the stages before; in the detail refinement.
    for call, message in [
        (1, f"vae: stopped at update 1 of {STEPS}"),
        (STEPS - 1 + 2 * STEPS + 1, f"dual_branch: stopped at update 1 of {STEPS}"),
        (STEPS - 1 + 1, f"drm: stopped at update 1 of {STEPS}"),
    ]:
        assert train(whole, workdir, stop_at=call) is None
        assert message in capsys.readouterr().err
    records = train(whole, workdir)
    assert logged_metrics(workdir) == logged_metrics(finished[0])
    for name in ORDER:
        assert arrays_equal(checkpointed_values(workdir, name), checkpointed_values(finished[0], name)), name
    assert arrays_equal(
        checkpointed_values(workdir, AVERAGED, "ema"), checkpointed_values(finished[0], AVERAGED, "ema")
    )
    for before, after in zip(finished[1], records, strict=True):
        for key in ("first_loss", "last_loss", "trained_parameters", "skipped"):
            assert after["summary"][key] == before["summary"][key]


def test_another_configuration_is_refused_and_what_may_change_is_taken(whole, finished, tmp_path, photographs):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    other = tiny_run(photographs | {"stages.vae.batch_size": 4, "losses.focal_gamma": 1.0})
    with pytest.raises(ValueError, match=r"losses\.focal_gamma: 2\.0 there, 1\.0 here(?s:.*)vae\.batch_size: 8 there"):
        train(other, workdir)
    changes = {"stages.dual_branch.ema_decay": 0.5, "stages.prior.ema_decay": 0.0, "log_every": 7}
    allowed = changes | {"evaluation.per_task": 1, "checkpoint.every": 9, "on_nonfinite": "skip"}
    assert train(tiny_run(photographs | allowed), workdir) is not None
    assert json.loads((workdir / "config.json").read_text())["config"]["log_every"] == 7
    # As an earlier version left it, which did not know one field, and as a later one might.
    stored = json.loads((workdir / "config.json").read_text())
    del stored["config"]["losses"]["regularizer_weight"]
    (workdir / "config.json").write_text(json.dumps(stored))
    assert train(tiny_run(photographs | allowed), workdir) is not None
    stored["config"]["losses"]["novel"] = 1
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"this version cannot continue: config\.losses\.novel: no such field"):
        train(tiny_run(photographs | allowed), workdir)
    shutil.rmtree(workdir)
    workdir.mkdir()
    (workdir / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and does not hold a run"):
        train(whole, workdir)


@pytest.fixture(scope="module")
def autoencoder(photographs, tmp_path_factory):
    """Experiment, workdir and evaluator of a run of the first stage alone, scored after every update."""
    changes = leave_out_all_but("vae") | {"stages.vae.steps": 4, "evaluation.every": 1, "checkpoint.keep": 1}
    experiment, evaluator = tiny_run(photographs | changes), Scores([5.0, 9.0, 7.0, 1.0])
    workdir = tmp_path_factory.mktemp("autoencoder") / "run"
    train(experiment, workdir, evaluator)
    return experiment, workdir, evaluator


def test_within_a_stage_the_best_is_kept(autoencoder):
    _, workdir, evaluator = autoencoder
    assert [final for _, final in evaluator.calls] == [1, 2, 3, True]
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "heldout_psnr" in row]
    assert [(row["step"], row["heldout_psnr"]) for row in rows] == [(1, 5.0), (2, 9.0), (3, 7.0)]
    with Checkpoints(initial_params.checkpoint_folder(workdir, "vae"), read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4]


def test_an_evaluation_that_was_lost_is_made_again(autoencoder, tmp_path):
    experiment, original, first = autoencoder
    workdir = Path(shutil.copytree(original, tmp_path / "run"))
    records.record_path(workdir, "vae").unlink()
    evaluator = Scores()
    (record,) = train(experiment, workdir, evaluator)
    assert evaluator.calls == [("vae", True)]
    assert arrays_equal(evaluator.params, first.params)
    assert logged_metrics(workdir) == logged_metrics(original)
    assert record["summary"]["last_loss"] == records.read_record(original, "vae")["summary"]["last_loss"]


class StoppedIn(Scores):
    """As if a signal came during the evaluation of this number, counted from 0."""

    def __init__(self, call: int):
        super().__init__()
        self._remaining = call

    def evaluate(self, stage: str, params: Mapping, final=False) -> dict:
        if self._remaining == 0:
            raise Preempted(f"{stage}: stopped in the evaluation")
        self._remaining -= 1
        return super().evaluate(stage, params, final)


def test_a_stop_in_an_evaluation_loses_nothing(photographs, tmp_path, capsys):
    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    fields = {"stages.vae.steps": 5, "evaluation.every": 2, "checkpoint.every": 100}
    experiment = tiny_run(photographs | leave_out_all_but("vae") | fields)
    assert train(experiment, workdir, StoppedIn(1)) is None
    assert "vae: stopped at update 4 of 5, saved in" in capsys.readouterr().err
    assert train(experiment, workdir, StoppedIn(0)) is None
    assert train(experiment, workdir, evaluator := StoppedIn(1)) is None
    assert [step for _, step in evaluator.calls] == [4]
    assert "vae: stopped in the evaluation" in capsys.readouterr().err
    assert train(experiment, workdir, evaluator := Scores()) is not None
    assert evaluator.calls == [("vae", True)]
    train(experiment, undisturbed)
    assert logged_metrics(workdir) == logged_metrics(undisturbed)
    assert arrays_equal(checkpointed_values(workdir, "vae"), checkpointed_values(undisturbed, "vae"))
    with Checkpoints(
        initial_params.checkpoint_folder(workdir, "vae"), best_metric="score", read_only=True
    ) as checkpoints:
        assert checkpoints.steps() == [4, 5] and checkpoints.metrics(4) == {"score": 1.0, "psnr": 1.0}


TWO_PROCESSES = """
    import json, sys
    from mperceiver_jax.config.experiment import Experiment, from_mapping
    from mperceiver_jax.distributed.runtime import on_first_process
    from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
    from mperceiver_jax.evaluate.run_report import write_run_report
    from tests.support.experiment_runs import train

    experiment = from_mapping(Experiment, json.loads(sys.argv[1]))
    records = train(experiment, sys.argv[2], HeldoutEvaluator)
    on_first_process(lambda: write_run_report(experiment, records, sys.argv[2]))
    assert len(train(experiment, sys.argv[2], HeldoutEvaluator)) == len(records)
    print("done")
"""


def test_two_processes_make_the_same_run(photographs, tmp_path):
    # One stage, since compiling takes most of the time: the one whose evaluation samples.
    experiment = tiny_run(photographs | leave_out_all_but(AVERAGED) | {f"stages.{AVERAGED}.ema_decay": 0.5})
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    write_run_report(experiment, train(experiment, alone, HeldoutEvaluator), alone)
    mapping = json.dumps(run.to_mapping(experiment))
    first, second = run_processes(TWO_PROCESSES, devices=1, args=[mapping, workdir])
    assert first.endswith("done\n") and second == "done\n"
    here, there = (read_metrics(path / "metrics.jsonl") for path in (workdir, alone))
    assert [(row["stage"], row["step"]) for row in here] == [(row["stage"], row["step"]) for row in there]
    np.testing.assert_allclose([row["loss"] for row in here], [row["loss"] for row in there], rtol=2e-4)
    report, reference = (json.loads((path / "report.json").read_text()) for path in (workdir, alone))
    assert report["device"].startswith("2 x")
    for name, task in reference["tasks"].items():
        for metric, tolerance in (("psnr", 0.05), ("ssim", 0.01)):
            restored = report["tasks"][name]["restored"][metric]
            assert abs(restored - task["restored"][metric]) < tolerance
