"""Evaluation on held-out photographs: what each stage has learned, and the report of the run.

`HeldoutEvaluator` is handed to the training loop. It never sees a photograph that trained, and its
degradations are fixed by the seed, so that figures of different runs are comparable.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.pipeline import HeldoutExamples, PipelineConfig, heldout_examples
from data_pipelines.tasks import Task
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.schema import in_group
from mperceiver_jax.diffusion.restoration import sample_latent, sampler_of
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, Preemption
from mperceiver_jax.errors import reraise
from mperceiver_jax.evaluate.metrics.full_reference import psnr, ssim
from mperceiver_jax.evaluate.report import sample_sheet
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.training import losses
from mperceiver_jax.training.stages.registry import SCHEDULE, base, diffusion_target, to_model_range

Results = dict[str, Any]


class HeldoutEvaluator:
    """Evaluates any stage on the held-out examples of an experiment.

    Args:
        experiment: data, sampler and sizes.
        model: built abstractly.
        mesh: where parameters lie; every process evaluates the same examples.
        workdir: images go to its `samples/`; None writes nothing.
        preemption: an evaluation ends between two batches, with Preempted, when it has noticed a signal.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: MPerceiver | RegressionModel,
        mesh: jax.sharding.Mesh,
        workdir: Path | None,
        preemption: Preemption | None = None,
    ):
        self._experiment, self._mesh, self._workdir, self._preemption = experiment, mesh, workdir, preemption
        self._structure, _ = parameters.split(model)
        self._model = model
        self._dtype = jnp.dtype(experiment.compute_dtype)
        self._compiled: dict[str, Callable] = {}
        # A folder that is missing, or too few images in it, is told now and not after hours of training.
        with reraise(_with_field):
            self._examples()

    def __call__(self, stage: str, params: Params, step: int) -> dict[str, float]:
        """Scalars for the log and for choosing the best checkpoint (`score`, higher is better)."""
        return self.evaluate(stage, params)["scalars"]

    def evaluate(self, stage: str, params: Params, final: bool = False) -> Results:
        """Everything measured after (or within) a stage. `final` also writes images, and measures a restorer by
        regression twice where the stage keeps an average: `params`, which are the averages, and what they average."""
        measure = {
            "vae": self._autoencoder,
            "prior": self._prior,
            "predictor": self._predictor,
            "dual_branch": lambda params, final: self._restoration(stage, params, final, refine=False),
            "drm": lambda params, final: self._restoration(stage, params, final, refine=True),
            "regression": lambda params, final: self._regression(stage, params, final),
        }[base(stage)]
        return measure(params, final)

    def _examples(self) -> HeldoutExamples:
        experiment = self._experiment
        return heldout_examples(experiment.data, experiment.evaluation.per_task, tasks=experiment.tasks)

    def _jit(self, name: str, function: Callable) -> Callable:
        """`function(model, ...)` as a compiled function of (parameters, ...); compiled once for each name."""
        if name not in self._compiled:

            def compute(values, *inputs):
                return function(parameters.merge(self._structure, values), *inputs)

            self._compiled[name] = jax.jit(compute, out_shardings=sharding.replicated(self._mesh))
        return self._compiled[name]

    def _run(self, stage: str, compute: Callable, params: Params, examples: Sequence) -> list[Any]:
        """`compute(parameters, batch, key) -> pytree` over all examples; one numpy result per example."""
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
                key = jax.random.fold_in(jax.random.key(self._experiment.seed), start)
                out = jax.device_get(compute(params, placed, key))
                new = slice(first - start, size)
                found += [jax.tree.map(lambda x, i=i: x[i], out) for i in range(size)][new]
                bar.update(len(rows[new]))
        return found

    def _autoencoder(self, params: Params, final: bool) -> Results:
        """PSNR of clean images through encoder (mean) and decoder: the ceiling without refinement."""

        def reconstruct(model, batch, key):
            z, _ = model.encode(to_model_range(batch["gt"], self._dtype))
            return _to_image(model.decode(z)), z.astype(jnp.float32)

        examples = self._examples()[: self._experiment.evaluation.per_task]
        out = self._run("vae", self._jit("vae", reconstruct), params, examples)
        quality = float(np.mean([psnr(image, row["gt"]) for (image, _), row in zip(out, examples, strict=True)]))
        spread = float(np.std([z for _, z in out]))
        if final:
            rows = [(row["name"], row["gt"], image, None) for (image, _), row in zip(out, examples, strict=True)]
            self._sheet("vae", rows[:6], ("truth", "autoencoder", ""))
        return {"scalars": {"score": quality, "psnr": quality, "latent_std": spread}}

    def _prior(self, params: Params, final: bool) -> Results:
        """Mean squared error of what the UNet predicts, at fixed timesteps and noise; a zero gives about 1."""

        def error(model, batch, key):
            z, _ = model.encode(to_model_range(batch["gt"], self._dtype))
            t = jnp.linspace(50, SCHEDULE.steps - 50, z.shape[0]).astype(jnp.int32)
            noise = jax.random.normal(key, z.shape, z.dtype)
            caption = model.text_encoder.encode(self._experiment.mperceiver.text.empty_caption()[None])
            context = jnp.broadcast_to(caption, (z.shape[0], *caption.shape[1:])).astype(z.dtype)
            out = model.unet(SCHEDULE.add_noise(z, noise, t), t, context, None)
            return jax.vmap(losses.mean_squared_error)(out, diffusion_target(self._experiment, z, noise, t))

        examples = self._examples()[: self._experiment.evaluation.per_task]
        value = float(np.mean(self._run("prior", self._jit("prior", error), params, examples)))
        return {"scalars": {"score": -value, "prediction_error": value}}

    def _predictor(self, params: Params, final: bool) -> Results:
        def logits(model, batch, key):
            return model.perceive(batch["lq_clip"].astype(self._dtype))[1].astype(jnp.float32)

        examples = self._examples()
        guesses = [
            int(row.argmax()) for row in self._run("predictor", self._jit("predictor", logits), params, examples)
        ]
        labels = [int(examples[k]["task"]) for k in range(len(examples))]
        return _confusion(labels, guesses, self._experiment.tasks)

    def _restoration(self, stage: str, params: Params, final: bool, refine: bool) -> Results:
        """PSNR and SSIM of degraded and restored images for each task, and the predictor's confusion."""
        sampler = sampler_of(self._experiment.sampler)

        def sampled(model, batch, key):
            lq = to_model_range(batch["lq"], self._dtype)
            return sample_latent(model, sampler, lq, batch["lq_clip"].astype(self._dtype), key)

        def decoded(model, latent, condition):
            taps = condition.taps if refine else None
            return _to_image(model.decode(latent, taps, condition.logits))

        # Sampling, the dear part, is compiled once for both stages that restore.
        sample, decode = self._jit("sample", sampled), self._jit(f"decode for {stage}", decoded)

        def restore(params, batch, key):
            latent, condition = sample(params, batch, key)
            return decode(params, latent, condition), condition.logits.astype(jnp.float32)

        return self._restored(stage, self._run(stage, restore, params, self._examples()), final)

    def _regression(self, stage: str, params: Params, final: bool) -> Results:
        """The same of a restorer by regression. Where a classifier tells it what is wrong, as it will be in use."""

        def restore(model, batch, key):
            def alone(lq, task):
                out, logits = model.restore(lq[None].astype(self._dtype), task[None])
                image = jnp.clip(out[0].astype(jnp.float32), 0, 1)
                return image, None if logits is None else logits[0].astype(jnp.float32)

            # As images are restored in use: where a network mixes those of a batch, figures would be another's.
            return jax.vmap(alone)(batch["lq"], batch["task"])

        measure = lambda params: self._run(stage, self._jit("regression", restore), params, self._examples())
        results = self._restored(stage, measure(params), final)
        if final and (last := self._last_parameters(stage, params)):
            both = {"moving averages": results, "last parameters": self._restored(stage, measure(last), final=False)}
            results["weight_kinds"] = {
                kind: {metric: of["scalars"][f"restored_{metric}"] for metric in ("psnr", "ssim")}
                for kind, of in both.items()
            }
        return results

    def _last_parameters(self, stage: str, averages: Params) -> Params | None:
        """The parameters that a finished stage ended with, from its checkpoint; None where it keeps no average."""
        config = self._experiment.stages.get(stage)
        if self._workdir is None or config is None or not config.ema_decay:
            return None
        values = initial_params.trained_values(self._workdir, stage, averaged=False) or {}
        placed = {
            path: sharding.place(value, averages[path].sharding, averages[path].dtype) for path, value in values.items()
        }
        return {**averages, **placed} if placed else None

    def _restored(self, stage: str, out: Sequence, final: bool) -> Results:
        """Figures and sheets of (restored image, logits of what is wrong with it or None) of all examples."""
        examples, every = self._examples(), self._experiment.tasks
        figures: dict[str, list[dict[str, float]]] = {}
        sheets: dict[str, list] = {}
        labels, guesses = [], []
        for (image, logits), row in zip(out, (examples[k] for k in range(len(examples))), strict=True):
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
        tasks = {name: _averages(rows) for name, rows in figures.items()}
        if final:
            shown = self._experiment.evaluation.samples
            self._sheet(stage, [row for rows in sheets.values() for row in rows[:shown]])
            for name, rows in sheets.items():
                self._sheet(f"{stage}_{name}", rows[:8])
        mean = {
            f"{side}_{metric}": float(np.mean([task[side][metric] for task in tasks.values()]))
            for side in ("degraded", "restored")
            for metric in ("psnr", "ssim")
        }
        scalars = {"score": mean["restored_psnr"], **mean}
        if not guesses:
            return {"scalars": scalars, "tasks": tasks}
        confusion = _confusion(labels, guesses, every)
        scalars["accuracy"] = confusion["scalars"]["accuracy"]
        return {"scalars": scalars, "tasks": tasks, "predictor": confusion["predictor"]}

    def _sheet(self, name: str, rows: Sequence, titles: Sequence[str] = ("degraded", "restored", "truth")) -> None:
        if self._workdir and rows and jax.process_index() == 0:
            sample_sheet(rows, self._workdir / "samples" / f"{name}.png", titles)


def _with_field(error: Exception) -> str:
    """What is wrong with the held-out examples, with the field that asks for them."""
    asked = str(error).startswith("per_task")
    return f"config.evaluation.{error}" if asked else in_group("config.data", PipelineConfig, error)


def _to_image(out: jax.Array) -> jax.Array:
    return jnp.clip((out.astype(jnp.float32) + 1) / 2, 0, 1)


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
