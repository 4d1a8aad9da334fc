"""Evaluation of the stages on held-out images.

The training loop calls `HeldoutEvaluator`. No held-out image is used in training, and the degradations are fixed
by the seed, so that figures of different runs are comparable.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.config import PipelineConfig
from data_pipelines.heldout import heldout_examples
from data_pipelines.tasks import Task
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.schema import in_group
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, Preemption
from mperceiver_jax.errors import reraise
from mperceiver_jax.evaluate.metrics.full_reference import psnr, ssim
from mperceiver_jax.evaluate.report import sample_sheet
from mperceiver_jax.models import parameters
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.random_streams import Streams
from mperceiver_jax.training.run_context import Results
from mperceiver_jax.training.stages.registry import build_stage


class HeldoutEvaluator:
    """Evaluates any stage on the held-out examples of an experiment.

    Args:
        experiment: data, sampler and sizes.
        model: built abstractly.
        mesh: where parameters lie; every process evaluates the same examples.
        workdir: images go to its `samples/`; None writes nothing.
        preemption: an evaluation ends between two batches, with Preempted, when a signal was noticed.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: RestorationModel,
        mesh: jax.sharding.Mesh,
        workdir: Path | None,
        preemption: Preemption | None = None,
    ):
        self._experiment, self._mesh, self._workdir, self._preemption = experiment, mesh, workdir, preemption
        self._structure, _ = parameters.split(model)
        self._model = model
        self._compiled: dict[str, Callable] = {}
        # A missing folder, or too few images in it, is an error now and not after hours of training.
        with reraise(_with_field):
            self.examples()

    def __call__(self, stage: str, params: Params, step: int) -> dict[str, float]:
        """Scalars for the log and for choosing the best checkpoint (`score`, higher is better)."""
        return self.evaluate(stage, params)["scalars"]

    def evaluate(self, stage: str, params: Params, final: bool = False) -> Results:
        """Everything measured after (`final`) or within a stage; see `Stage.evaluate`. `final` also writes images."""
        return build_stage(stage, self._experiment, self._model).evaluate(self, params, final)

    def examples(self, clean: bool = False) -> Sequence[Mapping[str, Any]]:
        """The held-out examples of all tasks; with `clean` only as many as one task has, for their `gt`."""
        experiment = self._experiment
        found = heldout_examples(experiment.data, experiment.evaluation.per_task, tasks=experiment.tasks)
        return found[: experiment.evaluation.per_task] if clean else found

    def compiled(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, ...)` as a compiled function of (parameters, ...), compiled once for each name."""
        if name not in self._compiled:

            def compute(values: Params, *inputs: Any) -> Any:
                return function(parameters.merge(self._structure, values), *inputs)

            traced = sharding.traced_over(self._mesh, compute)
            self._compiled[name] = jax.jit(traced, out_shardings=sharding.replicated(self._mesh))
        return self._compiled[name]

    def run(self, stage: str, compute: Callable[..., Any], params: Params, examples: Sequence[Any]) -> list[Any]:
        """`compute(parameters, batch, key)` over examples in batches; one pytree of numpy arrays per example."""
        size = min(self._experiment.evaluation.batch_size, len(examples))
        ways = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        spread = sharding.replicated(self._mesh) if size % ways else sharding.batch_sharding(self._mesh)
        found: list[Any] = []
        with progress_bar(f"{stage}: held-out evaluation", len(examples)) as bar:
            for first in range(0, len(examples), size):
                if self._preemption and self._preemption.noticed:
                    raise Preempted(f"{stage}: stopped in the held-out evaluation, which will be made again")
                # The last batch is moved back rather than cut: one shape, one compilation.
                start = min(first, len(examples) - size)
                rows = [examples[k] for k in range(start, start + size)]
                batch = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "name"}
                placed = {name: sharding.place(value, spread) for name, value in batch.items()}
                key = Streams(self._experiment.seed).key("heldout", start)
                out = jax.device_get(compute(params, placed, key))
                new = slice(first - start, size)
                found += [jax.tree.map(lambda x, i=i: x[i], out) for i in range(size)][new]
                bar.update(len(rows[new]))
        return found

    def reconstructions(self, stage: str, images: Sequence[np.ndarray], final: bool) -> float:
        """The mean PSNR in dB of reconstructions of the clean examples; `final` also writes them side by side."""
        examples = self.examples(clean=True)
        if final:
            rows = [(row["name"], row["gt"], image, None) for image, row in zip(images, examples, strict=True)]
            self._sheet(stage, rows[:6], ("truth", "autoencoder", ""))
        return float(np.mean([psnr(image, row["gt"]) for image, row in zip(images, examples, strict=True)]))

    def classifications(self, logits: Sequence[np.ndarray]) -> Results:
        """Accuracy and confusion of the logits of all examples."""
        guesses = [int(row.argmax()) for row in logits]
        examples = self.examples()
        labels = [int(examples[k]["task"]) for k in range(len(examples))]
        return _confusion(labels, guesses, self._experiment.tasks)

    def last_parameters(self, stage: str, averages: Params) -> Params | None:
        """The last parameters of a finished stage in place of its averages; None where it keeps no average."""
        config = self._experiment.stages.get(stage)
        if self._workdir is None or config is None or not config.ema_decay:
            return None
        values = initial_params.trained_values(self._workdir, stage, averaged=False) or {}
        placed = {
            path: sharding.place(value, averages[path].sharding, averages[path].dtype) for path, value in values.items()
        }
        return {**averages, **placed} if placed else None

    def restorations(self, stage: str, outputs: Sequence[tuple[Any, Any]], final: bool) -> Results:
        """PSNR, SSIM and confusion of (restored image, logits or None) of all examples; `final` writes images.

        Means over the tasks leave out the clean class, whose restored PSNR is a scalar of its own.
        """
        examples, every = self.examples(), self._experiment.tasks
        figures: dict[str, list[dict[str, float]]] = {}
        sheets: dict[str, list] = {}
        labels, guesses = [], []
        for (image, logits), row in zip(outputs, (examples[k] for k in range(len(examples))), strict=True):
            task = every[row["task"]]
            figures.setdefault(task.name, []).append(
                {
                    "degraded_psnr": psnr(row["lq"], row["gt"]),
                    "restored_psnr": psnr(image, row["gt"]),
                    "degraded_ssim": ssim(row["lq"], row["gt"]),
                    "restored_ssim": ssim(image, row["gt"]),
                }
            )
            sheets.setdefault(task.name, []).append((f"{task.title}: {row['name']}", row["lq"], image, row["gt"]))
            labels.append(task.label)
            if logits is not None:
                guesses.append(int(np.argmax(logits)))
        clean = {task.name for task in every if task.clean}
        tasks = {name: _averages(rows) | ({"clean": True} if name in clean else {}) for name, rows in figures.items()}
        if final:
            shown = self._experiment.evaluation.samples
            self._sheet(stage, [row for rows in sheets.values() for row in rows[:shown]])
            for name, rows in sheets.items():
                self._sheet(f"{stage}_{name}", rows[:8])
        # Clean images have no gain, and their PSNR may be infinite: they stand apart from the means.
        degraded = [task for name, task in tasks.items() if name not in clean] or list(tasks.values())
        mean = {
            f"{side}_{metric}": float(np.mean([task[side][metric] for task in degraded]))
            for side in ("degraded", "restored")
            for metric in ("psnr", "ssim")
        }
        scalars = {"score": mean["restored_psnr"], **mean}
        scalars |= {f"{name}_psnr": tasks[name]["restored"]["psnr"] for name in tasks if name in clean}
        if not guesses:
            return {"scalars": scalars, "tasks": tasks}
        confusion = _confusion(labels, guesses, every)
        scalars["accuracy"] = confusion["scalars"]["accuracy"]
        return {"scalars": scalars, "tasks": tasks, "predictor": confusion["predictor"]}

    def _sheet(self, name: str, rows: Sequence, titles: Sequence[str] = ("degraded", "restored", "truth")) -> None:
        if self._workdir and rows and jax.process_index() == 0:
            sample_sheet(rows, self._workdir / "samples" / f"{name}.png", titles)


def _with_field(error: Exception) -> str:
    """The message of an error in the held-out examples, with the field of the configuration."""
    asked = str(error).startswith("per_task")
    return f"config.evaluation.{error}" if asked else in_group("config.data", PipelineConfig, error)


def _averages(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    mean = lambda name: float(np.mean([row[name] for row in rows]))
    return {
        "images": len(rows),
        "degraded": {"psnr": mean("degraded_psnr"), "ssim": mean("degraded_ssim")},
        "restored": {"psnr": mean("restored_psnr"), "ssim": mean("restored_ssim")},
    }


def _confusion(labels: Sequence[int], guesses: Sequence[int], tasks: Sequence[Task]) -> Results:
    counts = np.zeros((len(tasks), len(tasks)), int)
    np.add.at(counts, (list(labels), list(guesses)), 1)
    accuracy = float(np.trace(counts) / max(counts.sum(), 1))
    predictor = {"accuracy": accuracy, "classes": [task.name for task in tasks], "confusion": counts.tolist()}
    return {"scalars": {"score": accuracy, "accuracy": accuracy}, "predictor": predictor}
