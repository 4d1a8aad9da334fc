"""A finished run adapted to a task it has never seen: its configuration, and a whole adaptation in small."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import fewshot
from data_pipelines.pipeline import training_pairs
from data_pipelines.tasks import TASKS
from data_pipelines.transforms import clip_view
from mperceiver_jax.checkpoints.initial_params import trained_values
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.convert.open_weights import open_weights
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.evaluate.run_report import write_run_report
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.class_expansion import expand_classes
from mperceiver_jax.restore.restorer import Restorer
from mperceiver_jax.training.adaptation import adapted, predicted_mixture
from mperceiver_jax.training.run import run_experiment
from mperceiver_jax.training.stages.registry import build_stage
from tests.support.finished_run import STEPS, finished_run
from tests.support.tiny_experiment import tiny_run, write_photographs
from tests.support.tiny_model import CLIP_SIDE

OLD, NEW = 9, "jpeg"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The workdir of a finished run of the tiny model, and two folders of photographs beside it."""
    folder = tmp_path_factory.mktemp("source")
    photographs = {
        "data.images": str(write_photographs(folder / "train")),
        "data.heldout_images": str(write_photographs(folder / "heldout", seed=1)),
    }
    steps = {f"stages.{name}.steps": STEPS for name in ("vae", "prior", "predictor", "dual_branch", "drm")}
    finished_run(folder / "run", tiny_run(photographs | steps))
    return folder / "run"


def mapping(source: Path, /, **changes) -> dict:
    config = fewshot.get_config("small")
    config.source = str(source)
    for name in config.stages:
        config.stages[name].steps = 2
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config.to_dict()


def experiment(source: Path, workdir: Path | None = None, /, **changes) -> Experiment:
    made = adapted(mapping(source, **changes), None if workdir is None else str(workdir))
    return from_mapping(Experiment, made)


def test_the_configuration_is_the_finished_runs_with_a_class_more(source):
    made, before = experiment(source), tiny_run()
    assert [task.name for task in made.tasks][OLD:] == [NEW] and made.mperceiver.adapter.classes == OLD + 1
    assert made.data.weights == pytest.approx({"dehaze": 0.375, "denoise": 0.375, NEW: 0.25})
    assert made.stages.keys() == {"predictor", "dual_branch", "drm"}
    assert made.stages["drm"].crop == before.stages["drm"].crop and made.stages["drm"].steps == 2
    assert (made.variant, made.pretrained) == ("tiny_jpeg", str(Path("runs/tiny_jpeg/start").absolute()))
    assert made.sampler == before.sampler and made.evaluation == before.evaluation


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("prompts", {"tp": True, "visual_prompt": True, "spade": True, "cm_inv": False, "fea_tran": False}),
        ("adapters", {"tp": True, "visual_prompt": True, "spade": True, "cm_inv": True, "fea_tran": True}),
    ],
)
def test_prompts_and_modulators_or_all_adapters(source, train, expected):
    made = experiment(source, **{"new_task.train": train})
    trained = build_stage("dual_branch", made, made.build())
    paths = parameters.declared(made.build())
    assert {part: any(trained.is_trained(p) for p in paths if part in p.split(".")) for part in expected} == expected
    refinement = build_stage("drm", made, made.build())
    assert refinement.is_trained("drm.down_blocks.0.blocks.0.degradation.weight")
    assert refinement.is_trained("drm.residual.weight") == (train == "adapters")
    assert not refinement.is_trained("vae.decoder.conv_in.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, r"config\.source: the workdir of a finished run is missing; give it with --config\.source"),
        ({"source": "/nowhere"}, r"config\.source: /nowhere holds no run"),
        ({"new_task.name": "dehaze"}, r"config\.new_task\.name: 'dehaze' is known to that run"),
        ({"new_task.degradation": ""}, r"config\.new_task\.degradation: the new task needs one, or pairs"),
        ({"new_task.lq": "a"}, r"config\.new_task\.pairs: one prepared set \(pairs\), or two folders"),
        ({"new_task.rehearsal": 0.0}, r"config\.new_task\.rehearsal: above 0 and below 1"),
        ({"new_task.train": "all"}, r"config\.new_task\.train: one of"),
        ({"new_task.percent": 0.0}, r"config\.new_task\.percent: above 0 and at most 100, not 0"),
        ({"new_task.degradation": "fog"}, r"config\.data\.degradations\['jpeg'\]: no degradation is named 'fog'"),
        ({"stages.drm.trainable": "("}, r"config\.stages\.drm\.trainable: '\(' is not a regular expression"),
    ],
)
def test_mistakes_are_named(source, changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment(source, **changes)


def test_an_unfinished_run_is_refused(source, tmp_path):
    shutil.copytree(source, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["stages"]["drm"]["steps"] = STEPS + 1
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="the stage drm is unfinished, at update 2 of 3; finish it first"):
        experiment(tmp_path / "run")


def test_a_whole_adaptation(source, tmp_path, monkeypatch):
    one = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda config: one)
    workdir = tmp_path / "run"
    # The detail refinement is left out to compile less; 'degraded' does not depend on the stage.
    made = experiment(source, workdir, **{"stages.drm.steps": 0, "new_task.percent": 25.0})
    records = run_experiment(made, workdir, HeldoutEvaluator)
    assert [record["summary"]["name"] for record in records] == ["zero_shot", "predictor", "dual_branch"]

    start = {path: np.asarray(value) for path, value in PretrainedDirectory(workdir / "start").values()}
    mixture = PretrainedDirectory(workdir / "start").record["sources"][0]["mixture"]
    assert [*mixture] == [task.name for task in TASKS] and sum(mixture.values()) == pytest.approx(1, abs=1e-4)
    assert records[0]["adaptation"] == {"task": NEW, "pairs": 8, "mixture": mixture}
    trained = trained_values(workdir, "dual_branch")
    assert {path.split(".")[0] for path in trained} == {"tp", "ir_adapter", "unet"}
    # Both pools have moved in the new class's place.
    assert np.abs(trained["tp"][OLD] - start["tp"][OLD]).max() > 0
    moved = np.abs(trained["ir_adapter.visual_prompt"] - start["ir_adapter.visual_prompt"])
    assert moved[:, OLD].max() > 0

    # Before, nothing was taken for the new class.
    assert np.array(records[0]["predictor"]["confusion"])[:, OLD].sum() == 0
    message = write_run_report(made, records, workdir)
    assert "jpeg, from 8 pairs: degraded" in message
    report = json.loads((workdir / "report.json").read_text())["adaptation"]["tasks"]
    assert list(report) == [NEW, "dehaze", "denoise"]
    last = records[-1]["tasks"][NEW]
    assert report[NEW]["few_shot"] == last["restored"] and report[NEW]["degraded"] == last["degraded"]
    assert report[NEW]["zero_shot"] == records[0]["tasks"][NEW]["restored"] != last["restored"]
    assert "**jpeg** (new)" in (workdir / "report.md").read_text()

    # The same command finds all done; what the workdir holds restores without the run it came from.
    assert [r["scalars"] for r in run_experiment(made, workdir, HeldoutEvaluator)] == [r["scalars"] for r in records]
    with pytest.warns(UserWarning, match="refinement was not trained"):
        restorer = Restorer.from_checkpoint(workdir)
    assert [*restorer.predict(np.zeros((16, 16, 3), np.uint8))][OLD] == NEW

    # It is a run like any other, and can be adapted to a further task.
    again = experiment(workdir, **{"new_task.name": "sr4", "new_task.degradation": "mioir_sr4"})
    assert [task.name for task in again.tasks][OLD:] == [NEW, "sr4"] and again.mperceiver.drm.classes == OLD + 2
    assert again.data.weights == pytest.approx({"dehaze": 0.28125, "denoise": 0.28125, NEW: 0.1875, "sr4": 0.25})
    larger = dict(expand_classes(open_weights(workdir).values, np.full(OLD + 1, 0.1)))
    assert {path: v.shape for path, v in larger.items()} == {
        path: variable.get_value().shape for path, variable in parameters.declared(again.build()).items()
    }


def test_the_mixture_is_what_the_predictor_says_of_the_pairs(source):
    made, found = experiment(source), open_weights(source)
    pairs = training_pairs(made.data, made.tasks[-1])
    structure, _ = parameters.split(found.model)
    views = np.stack([clip_view(pairs[k]["lq"], CLIP_SIDE) for k in range(len(pairs))])
    whole = jax.jit(lambda values, views: jax.nn.softmax(parameters.merge(structure, values).perceive(views)[1]))
    expected = np.mean(whole(dict(found.values), views), 0)
    np.testing.assert_allclose(predicted_mixture(found, pairs), expected, atol=1e-4)
    assert expected.max() > 0.15  # The predictor has an opinion, so that agreeing says something.
