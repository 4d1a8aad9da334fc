"""Restorers by regression: every family under one way of calling, the stage, curricula, and whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.checkpoints.trained_run import trained_stages
from mperceiver_jax.config import phases
from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.config.phases import data_config, stages_of
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.evaluate.run_report import write_run_report
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.models.restorers.nafnet import NAFNetConfig
from mperceiver_jax.models.restorers.pip import PIPConfig
from mperceiver_jax.models.restorers.promptir import PromptIRConfig
from mperceiver_jax.models.restorers.registry import FAMILIES, RegressionConfig, RegressionModel
from mperceiver_jax.models.restorers.restormer import RestormerConfig
from mperceiver_jax.restore import Restorer
from mperceiver_jax.training import losses, run
from mperceiver_jax.training.deferred_metrics import NonFiniteLoss
from mperceiver_jax.training.metric_log import read_metrics
from mperceiver_jax.training.stages.registry import build_stage
from tests.support.experiment_runs import arrays_equal, checkpointed_values, train
from tests.support.tiny_experiment import tiny_run
from tests.support.tiny_restorer_run import SIDE, tiny_regression

FIVE = tuple(task.name for task in TASK_SETS["pip"])
SEVEN = tuple(task.name for task in TASK_SETS["mioir"])
PHASES = {
    "stages.regression.steps": 7,
    "stages.regression.curriculum": (
        {"tasks": ("denoise",), "steps": 3},
        {"tasks": ("denoise", "lowlight"), "steps": 4},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        one = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
        patch.setattr(sharding, "make_mesh", lambda config: one)
        yield


SIZES = [
    ("restormer", RestormerConfig.small(), FIVE, False),
    ("nafnet", NAFNetConfig.small(), FIVE, False),
    ("promptir", PromptIRConfig.small(), FIVE, False),
    ("am_promptir", AMPromptIRConfig.small(), FIVE, True),
    ("pip", PIPConfig.small(), FIVE, True),
    *[
        (name, FAMILIES[name].config.small(kind), SEVEN, kind == "explicit")
        for name in FAMILIES
        if name.startswith("mioir_")
        for kind in ("plain", "explicit", "adaptive")
    ],
]


IDS = lambda value: value if isinstance(value, str) else ""


@pytest.mark.parametrize(("family", "sizes", "tasks", "conditional"), SIZES, ids=IDS)
def test_every_family_is_called_alike_and_survives_a_configuration(family, sizes, tasks, conditional):
    config = RegressionConfig(family, sizes, tasks)
    assert from_mapping(RegressionConfig, to_mapping(config)) == config
    model = RegressionModel(config)
    assert config.is_conditional == conditional == hasattr(model, "classifier")
    structure, declared = parameters.split(model)
    image = jax.ShapeDtypeStruct((2, 48, 40, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)

    def restored(params, lq, task):
        return parameters.merge(structure, params).restore(lq, task)

    out, logits = jax.eval_shape(restored, declared, image, labels)
    assert out.shape == image.shape
    assert (logits is not None) == conditional and (not conditional or logits.shape == (2, len(tasks)))


def test_the_condition_matters_and_comes_from_the_classifier_or_the_label():
    blind, oracle = (
        RegressionModel(
            RegressionConfig("mioir_srresnet", SRResNetConfig(4, 1, prompts="explicit"), SEVEN, condition_source=source)
        )
        for source in ("classifier", "label")
    )
    for model in (blind, oracle):
        parameters.initialise(model)
    lq = jnp.asarray(np.random.default_rng(0).random((2, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match=r"MiOIR \(SRResNet\) needs the degradation"):
        oracle.restore(lq)
    first, none = oracle.restore(lq, jnp.array([0, 0]))
    other, _ = oracle.restore(lq, jnp.array([0, 3]))
    assert none is None and np.array_equal(first[0], other[0]) and not np.allclose(first[1], other[1], atol=1e-6)
    # A network with a classifier asks it, whatever the labels are.
    out, logits = blind.restore(lq, jnp.array([6, 6]))
    np.testing.assert_array_equal(out, oracle.restore(lq, logits.argmax(-1))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "unet"}, r"model\.family: 'unet' given, one of restormer"),
        ({"tasks": ("denoise",)}, r"model\.tasks: the network has 7 classes, but 1"),
        ({"network": {"dims": 3}}, r"model\.network\.dims: no such field"),
        ({"words": "x.npy"}, r"model\.words: only AM-PromptIR"),
    ],
)
def test_a_model_that_cannot_be_is_named_by_its_field(change, message):
    mapping = to_mapping(tiny_regression(prompts="explicit"))
    mapping["model"] |= change
    with pytest.raises(ConfigError, match=r"config\." + message):
        from_mapping(Experiment, mapping)


def test_stages_of_other_models_are_refused(tmp_path):
    stage = to_mapping(tiny_regression().stages["regression"])
    with pytest.raises(ConfigError, match=r"config\.stages\.vae: no stage for MiOIR"):
        train(tiny_regression({"stages": {"vae": stage}}), tmp_path)


def test_the_loss_is_that_of_the_recipe_and_the_classifier_is_trained_too():
    experiment = tiny_regression({"losses.regression": "charbonnier_fft"}, prompts="explicit")
    model = experiment.build()
    stage = build_stage("regression", experiment, model)
    params = parameters.initial_values(model, 0)
    assert all(stage.is_trained(path) for path in params)
    rng = np.random.default_rng(1)
    batch = {name: jnp.asarray(rng.random((2, SIDE, SIDE, 3), np.float32)) for name in ("lq", "gt")}
    batch["task"] = jnp.array([1, 5])
    value, metrics = stage.loss(params, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    structure, _ = parameters.split(model)
    whole = parameters.merge(structure, params)
    out = whole(batch["lq"], jax.nn.one_hot(batch["task"], 7))
    expected = losses.charbonnier(out, batch["gt"]) + 0.01 * losses.spectral_distance(out, batch["gt"])
    np.testing.assert_allclose(metrics["distance"], expected, rtol=1e-5)
    entropy = losses.cross_entropy(whole.classifier(batch["lq"]), batch["task"])
    np.testing.assert_allclose(value, expected + entropy, rtol=1e-5)
    twice = tiny_regression({"losses.regression": "charbonnier_fft", "losses.double_softmax": True}, prompts="explicit")
    value, _ = build_stage("regression", twice, model).loss(params, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    entropy = losses.cross_entropy(jax.nn.softmax(whole.classifier(batch["lq"])), batch["task"])
    np.testing.assert_allclose(value, expected + entropy, rtol=1e-5)


def test_a_network_conditioned_on_the_classifier_is_exposed_to_its_errors():
    source = {"losses.condition_source": "classifier"}
    experiment = tiny_regression(source, prompts="explicit")
    model = experiment.build()
    params = parameters.initial_values(model, 0)
    rng = np.random.default_rng(1)
    batch = {name: jnp.asarray(rng.random((2, SIDE, SIDE, 3), np.float32)) for name in ("lq", "gt")}
    structure, _ = parameters.split(model)
    whole = parameters.merge(structure, params)
    said = whole.classifier(batch["lq"]).argmax(-1)
    batch["task"] = (said + 1) % 7

    def distance(experiment, params):
        stage = build_stage("regression", experiment, experiment.build())
        return stage.loss(params, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[1]["distance"]

    predicted, true = (
        losses.l1(whole(batch["lq"], jax.nn.one_hot(task, 7)), batch["gt"]) for task in (said, batch["task"])
    )
    assert abs(predicted - true) > 1e-5
    np.testing.assert_allclose(distance(experiment, params), predicted, rtol=1e-6)
    oracle = tiny_regression(source | {"model.condition_source": "label"}, prompts="explicit")
    alone = {path: value for path, value in params.items() if path.startswith("network.")}
    np.testing.assert_allclose(distance(oracle, alone), true, rtol=1e-6)


def test_a_run_is_trained_reported_and_shown(photographs, tmp_path):
    experiment = tiny_regression(photographs, prompts="explicit")
    records = run.run_experiment(experiment, tmp_path / "run", HeldoutEvaluator)
    text = write_run_report(experiment, records, tmp_path / "run")
    assert "2 held-out tasks" in text
    report = (tmp_path / "run" / "report.md").read_text()
    assert "# MiOIR (SRResNet), variant tiny_regression" in report and "its own classifier" in report
    assert set(records[0]["tasks"]) == {"denoise", "lowlight"}
    assert records[0]["predictor"]["classes"] == list(SEVEN)
    assert (tmp_path / "run" / "samples" / "regression_denoise.png").is_file()
    ema, last = (checkpointed_values(tmp_path / "run", "regression", entry) for entry in ("ema", "trainable"))
    assert any(not np.array_equal(ema[path], last[path]) for path in ema)
    # Both sets are measured, each as it would be alone.
    alone = HeldoutEvaluator(experiment, experiment.build(), sharding.make_mesh(None), None)
    for kind, params in (("moving averages", ema), ("last parameters", last)):
        scalars = alone.evaluate("regression", params)["scalars"]
        expected = {metric: scalars[f"restored_{metric}"] for metric in ("psnr", "ssim")}
        assert records[0]["weight_kinds"][kind] == pytest.approx(expected)
        assert f"| {kind} | {expected['psnr']:.2f} | {expected['ssim']:.4f} |" in report
        assert f"{kind} {expected['psnr']:.2f} dB" in text
    assert records[0]["scalars"]["restored_psnr"] == records[0]["weight_kinds"]["moving averages"]["psnr"]
    assert "All else in this report is of the moving averages." in report


def test_phases_interrupted_within_and_between_end_the_same(photographs, tmp_path):
    experiment = tiny_regression(photographs | PHASES)
    assert train(experiment, tmp_path / "whole") is not None
    # Within the first phase, then before the second one's first update, then within that.
    for updates in (2, 1, 2):
        assert train(experiment, tmp_path / "cut", stop_at=updates) is None
    (last,) = trained_stages(tmp_path / "cut", experiment)
    assert last.unfinished == "the stage regression.2 is unfinished, at update 2 of 4"
    assert train(experiment, tmp_path / "cut") is not None
    rows = [
        [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(tmp_path / place / "metrics.jsonl")]
        for place in ("whole", "cut")
    ]
    assert rows[0] == rows[1] and [row["stage"] for row in rows[0]] == 3 * ["regression.1"] + 4 * ["regression.2"]
    for entry in ("trainable", "ema"):
        assert arrays_equal(
            *(checkpointed_values(tmp_path / place, "regression.2", entry) for place in ("whole", "cut"))
        )
    # What restores it knows it from its workdir alone.
    restored = Restorer.from_checkpoint(tmp_path / "cut")
    assert arrays_equal(restored.params, checkpointed_values(tmp_path / "whole", "regression.2", "ema"))


def test_a_phase_goes_on_from_parameters_and_average_with_a_fresh_optimizer(photographs, tmp_path):
    # A rate of zero leaves in the second phase what was handed over; only the average moves towards it.
    still = {"stages.regression.optimizer.schedule": "epochs", "stages.regression.optimizer.period": 3}
    experiment = tiny_regression(photographs | PHASES | still | {"stages.regression.optimizer.lag": 1})
    run_of = train(experiment, tmp_path)
    assert [record["summary"]["name"] for record in run_of] == ["regression.1", "regression.2"]
    # Three updates at a rate of zero in each phase; the second has one more.
    start_values = parameters.initial_values(experiment.build(), experiment.seed, lambda path, value: value)
    assert arrays_equal(checkpointed_values(tmp_path, "regression.1"), start_values)


def test_phases_hand_over_both_sets_of_parameters(photographs, tmp_path):
    changes = PHASES | {"stages.regression.steps": 4, "checkpoint.every": 1, "checkpoint.keep": 9}
    first, second = ({"tasks": ("denoise",), "steps": 3}, {"tasks": ("denoise", "lowlight"), "steps": 1})
    experiment = tiny_regression(photographs | changes | {"stages.regression.curriculum": (first, second)})
    train(experiment, tmp_path)
    ema, after = (
        checkpointed_values(tmp_path, "regression.1", "ema"),
        checkpointed_values(tmp_path, "regression.2", "ema"),
    )
    now = checkpointed_values(tmp_path, "regression.2")
    for path, value in after.items():
        np.testing.assert_allclose(value, 0.5 * ema[path] + 0.5 * now[path], rtol=1e-5, atol=1e-7)


def test_phases_see_their_tasks_and_their_own_data():
    experiment = phases.expand_curricula(tiny_regression(PHASES))
    assert phases.expand_curricula(experiment) == experiment
    assert stages_of(experiment) == ["regression.1", "regression.2"]
    first, second = (data_config(experiment, name) for name in stages_of(experiment))
    assert set(first.weights) == {"denoise"} and set(second.weights) == {"denoise", "lowlight"}
    assert first.seed != second.seed


def test_any_stage_of_any_model_has_phases():
    curriculum = ({"tasks": ("dehaze",), "steps": 1}, {"tasks": ("dehaze", "denoise"), "steps": 2})
    fields = {"stages.predictor.steps": 3, "stages.predictor.curriculum": curriculum}
    experiment = phases.expand_curricula(tiny_run(fields))
    names = ["vae", "prior", "predictor.1", "predictor.2", "dual_branch", "drm"]
    assert stages_of(experiment) == names
    model = experiment.build()
    later, whole = (build_stage(name, experiment, model) for name in ("predictor.2", "predictor"))
    paths = parameters.declared(model)
    assert [later.is_trained(path) for path in paths] == [whole.is_trained(path) for path in paths]
    assert set(data_config(experiment, "predictor.1").weights) == {"dehaze"}


def test_a_phase_of_a_task_that_does_not_exist_is_named(tmp_path):
    phases = ({"tasks": ("denoise",), "steps": 3}, {"tasks": ("denoise", "fog"), "steps": 4})
    with pytest.raises(ConfigError, match=r"regression\.curriculum\[1\]\.tasks: no task is named fog; the tasks are"):
        train(tiny_regression(PHASES | {"stages.regression.curriculum": phases}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auxiliary_losses_are_not_limited(photographs, tmp_path):
    """Every loss is a spike here, and the optimizer as good as plain descent: the network must stay where it is."""
    optimizer = {"spike_limit": 1e-6, "eps": 1e3, "weight_decay": 0.0, "learning_rate": 1e3}
    changes = {f"stages.regression.optimizer.{name}": value for name, value in optimizer.items()}
    experiment = tiny_regression(photographs | changes, prompts="explicit")
    train(experiment, tmp_path / "run")
    before = parameters.initial_values(experiment.build(), experiment.seed, lambda path, value: value)
    moved = {
        path: np.abs(value - before[path]).max()
        for path, value in checkpointed_values(tmp_path / "run", "regression").items()
    }
    assert max(value for path, value in moved.items() if path.startswith("network.")) < 1e-5
    assert moved["classifier.lastOut.bias"] > 1e-2


def test_a_loss_that_is_not_finite_names_a_field_that_exists(photographs, tmp_path):
    changes = photographs | PHASES | {"stages.regression.optimizer.learning_rate": 1e30}
    with pytest.raises(NonFiniteLoss, match=r"^regression\.1: .*with a lower config\.stages\.regression\.optimizer"):
        train(tiny_regression(changes), tmp_path)


def test_a_curriculum_that_does_not_add_up_is_refused():
    with pytest.raises(ConfigError, match=r"regression\.steps: the phases of the curriculum make 7 updates, not 9"):
        tiny_regression(PHASES | {"stages.regression.steps": 9})
