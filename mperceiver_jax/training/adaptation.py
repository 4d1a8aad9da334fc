"""Adapt a finished run to a new task with a few percent of that task's pairs.

A class is added to the model, initialised from the predictor's average output on the new images
(`models.mperceiver.class_expansion`). Then the usual stages continue: the predictor's head learns to distinguish
the new task from the old ones, the dual branch and the detail refinement learn to restore it, either with
everything that these stages train or with prompts and modulators only. A share of every batch is from the old
tasks, so that they are not forgotten.

    adapted         derives the configuration from that of the finished run
    write_start     writes the initial parameters into the workdir, as a directory of pretrained weights
    zero_shot       evaluates all tasks before the adaptation
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines.images import as_float
from data_pipelines.pipeline import training_pairs
from data_pipelines.sources.few_shot import Subset
from data_pipelines.transforms import predictor_view
from mperceiver_jax.checkpoints.model_parts import PARTS
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory, is_pretrained_directory, write_pretrained
from mperceiver_jax.checkpoints.run_params import RunParams, run_params
from mperceiver_jax.checkpoints.trained_run import trained_stages
from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.class_expansion import expand_classes, one_more_class, without_last_class
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.training.run_context import RunContext

# Regular expressions that narrow what the stages train with `train = 'prompts'`. The predictor's head is trained
# in either case.
PROMPTS = {
    "dual_branch": r"tp$|ir_adapter\.visual_prompt$|unet\..*\.spade\.",
    "drm": r"drm\..*\.degradation\.",
}
RECORD = "zero_shot"


@dataclass(frozen=True)
class NewTask:
    """The task to adapt to.

    Attributes:
        name: as shown in reports.
        degradation: a published degradation (`data_pipelines.degradations.protocols`) that makes the pairs from
            the run's clean images.
        pairs: existing pairs instead: prepared data or a set of tensorflow_datasets, as in
            `data_pipelines.sources.spec`. Those that are not trained on are held out.
        lq, gt: instead of `pairs`, a folder of degraded images and one of clean ones with the same names.
        percent: percentage of the pairs that is trained on.
        train: prompts and modulators only (`prompts`), or everything that the stages train (`adapters`).
        rehearsal: share of the batches that is from the old tasks.
    """

    name: str
    degradation: str = ""
    pairs: str = ""
    lq: str = ""
    gt: str = ""
    percent: float = 5.0
    train: Literal["prompts", "adapters"] = "prompts"
    rehearsal: float = 0.75

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: the new task needs one")
        if bool(self.lq) != bool(self.gt) or (self.pairs and self.lq):
            raise ValueError("pairs: one prepared set (pairs), or two folders (lq and gt)")
        if not (self.degradation or self.pairs or self.lq):
            raise ValueError("degradation: the new task needs one, or pairs (config.new_task.pairs, or lq and gt)")
        if not 0 < self.percent <= 100:
            raise ValueError(f"percent: above 0 and at most 100, not {self.percent}")
        if not 0 < self.rehearsal < 1:
            raise ValueError(f"rehearsal: above 0 and below 1, not {self.rehearsal}; the predictor needs both sides")


def start_directory(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "start"


def adapted(mapping: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
    """The configuration of an adaptation.

    Args:
        mapping: `source`, the workdir of the finished run; `new_task`, see `NewTask`; and fields of `Experiment`
            that replace those of the finished run.
        workdir: of the adaptation; `runs/<variant>_<task>` where None.

    Returns:
        a mapping for `from_mapping(Experiment, ...)`.

    Raises:
        ConfigError: names the field.
    """
    changes = dict(mapping)
    source = changes.pop("source")
    if not source:
        raise ConfigError(
            "config.source: the workdir of a finished run is missing; give it with --config.source=WORKDIR"
        )
    if "new_task" not in changes:
        raise ConfigError("config.new_task: missing; adaptations are configured by configs/fewshot.py")
    new: NewTask = from_mapping(NewTask, changes.pop("new_task"), "config.new_task")
    try:
        base = read_config(source)
        before = from_mapping(Experiment, base, f"{Path(source) / 'config.json'}")
        finished = trained_stages(source, before)
        model = to_mapping(one_more_class(before.mperceiver))
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.source: {error}") from error
    if unfinished := [stage.unfinished for stage in finished if stage.unfinished]:
        raise ConfigError(f"config.source: {source}: {unfinished[0]}; finish it first, with its own command")
    if new.name in (names := [task.name for task in before.tasks]):
        raise ConfigError(f"config.new_task.name: {new.name!r} is known to that run; it has {', '.join(names)}")
    variant = f"{before.variant}_{new.name}"
    trained = {stage.name.split(".")[0] for stage in finished}
    stages = {
        name: _updated(dict(base["stages"].get(name, {}), tasks=[], curriculum=[]), _narrowed(name, given, new))
        for name, given in changes.pop("stages", {}).items()
        if name in trained
    }
    own = {
        "variant": variant,
        "variant_reason": f"{before.variant} of {source} adapted to {new.name}",
        "source": str(source),
        "from_scratch": False,
        "pretrained": str(start_directory(workdir or f"runs/{variant}")),
        "model": model,
        "data": _data(base["data"], new, names),
        "losses": {"train_tower": False},
        "cache": "",
    }
    return _updated(_updated(base, own) | {"stages": stages, "data": own["data"]}, changes)


def _narrowed(stage: str, given: Mapping[str, Any], new: NewTask) -> dict[str, Any]:
    return {"trainable": PROMPTS.get(stage, "") if new.train == "prompts" else "", **given}


def _data(data: Mapping[str, Any], new: NewTask, old: list[str]) -> dict[str, Any]:
    """The data of the finished run with the new task added."""
    weights = data.get("weights") or dict.fromkeys(old, 1.0)
    share = new.rehearsal / sum(weights.values())
    with_new = lambda field, value: {**data.get(field, {}), **({new.name: value} if value else {})}
    pairs = new.pairs or ({"lq": new.lq, "gt": new.gt} if new.lq else "")
    return {
        **data,
        "new_tasks": [*data.get("new_tasks", []), new.name],
        "degradations": with_new("degradations", new.degradation),
        "pairs": with_new("pairs", pairs),
        "train_percent": with_new("train_percent", new.percent),
        "weights": {name: weight * share for name, weight in weights.items()} | {new.name: 1 - new.rehearsal},
        "mixing": "weights",
    }


def _updated(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _updated(result[key], value) if inner else value
    return result


def write_start(experiment: Experiment) -> None:
    """Writes the finished run's parameters with the new class to the directory `experiment.pretrained`, if it does
    not exist yet. In a distributed run only process 0 may call it.

    Raises:
        FileNotFoundError, ValueError, CheckpointError: the finished run cannot be read.
    """
    if is_pretrained_directory(experiment.pretrained):
        return
    found = run_params(experiment.source)
    task = experiment.tasks[-1]
    pairs = training_pairs(experiment.data, task)
    mixture = predicted_mixture(found, pairs)
    record = {
        "name": str(experiment.source),
        "layout": f"the training run {experiment.source}, with a class for {task.name}",
        "parts": [part.title for part in PARTS],
        "sha256": {},
        "licence": ["that of the run it was adapted from"],
        "pairs": len(pairs),
        "mixture": dict(zip((one.name for one in experiment.tasks), mixture.tolist(), strict=False)),
    }
    given = found.without_placeholders
    with progress_bar("adding a class", len(given)) as bar:

        def values() -> Iterator[tuple[str, np.ndarray]]:
            for path, value in expand_classes(given, mixture):
                yield path, value
                bar.update(1 if path in given else 0)

        write_pretrained(experiment.pretrained, values(), [record])


def predicted_mixture(found: RunParams, pairs: Subset) -> np.ndarray:
    """(classes,): the predicted probabilities of the classes, averaged over the degraded images."""
    assert isinstance(found.model, MPerceiver), "`adapted` accepts no other model"
    predictor = found.model.predictor
    structure, declared = parameters.split(predictor)
    values = {path: np.asarray(found.values[f"predictor.{path}"]) for path in declared}
    probabilities = jax.jit(lambda values, view: jax.nn.softmax(parameters.merge(structure, values)(view)[1]))
    config = found.model.config.predictor
    size = config.vision.image_size
    views = (predictor_view(as_float(pairs[k]["lq"]), size, config.view, config.views)[None] for k in range(len(pairs)))
    return np.mean([np.asarray(probabilities(values, view)[0], np.float32) for view in views], 0)


def zero_shot(context: RunContext, params: Params) -> dict[str, Any]:
    """Evaluates all tasks before the adaptation, with probability zero for the new class; returns the record.

    Args:
        params: those of `write_start`, on the mesh.
    """
    began = time.monotonic()
    stage = "drm" if "drm" in context.experiment.stages and context.experiment.stages["drm"].steps else "dual_branch"
    results = context.evaluator.evaluate(stage, without_last_class(params))
    start = PretrainedDirectory(context.experiment.pretrained).record["sources"][0]
    summary = {"name": RECORD, "steps": 0, "seconds": time.monotonic() - began, "trained_parameters": 0}
    adaptation = {"task": context.experiment.tasks[-1].name, "pairs": start["pairs"], "mixture": start["mixture"]}
    return {**results, "summary": summary, "adaptation": adaptation}
