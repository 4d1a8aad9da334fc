"""The stage `regression`: models that map the degraded image straight to the restored one."""

from typing import Any

import jax
import jax.numpy as jnp

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.training import losses
from mperceiver_jax.training.run_context import HeldoutTools, Results
from mperceiver_jax.training.stages.base import Batch, StageBase
from mperceiver_jax.training.step import Metrics, SplitLoss


class RegressionStage(StageBase):
    """The distance of the restored image from the clean one, and what a classifier and a regularizer add.

    The condition of a conditional network is the true task of every image, or the prediction of its classifier
    (`losses.condition_source`), which is trained at the same time. Where the optimizer limits loss spikes, the
    loss is split: the limit applies to the distance alone.
    """

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel):
        title = f"{experiment.title}, from degraded to restored"
        super().__init__(name, experiment, model, title=title, trainable=r"network\.|classifier\.")
        config = experiment.stages.get(name)
        self._splits = config is not None and config.optimizer.spike_limit > 0

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array | SplitLoss, Metrics]:
        choice = self._experiment.losses
        model: RegressionModel = self._assembled(params)
        lq = batch["lq"].astype(self._dtype)
        logits = model.logits(lq)
        condition = logits if choice.condition_source == "classifier" else None
        out = model(lq, model.weights(condition, batch["task"]), key=key)
        distance = self._distance(out, batch["gt"])
        metrics = {"distance": distance, "psnr": losses.mean_psnr(out, batch["gt"])}
        auxiliary = jnp.asarray(choice.regularizer_weight * model.penalty(), jnp.float32)
        if logits is not None:
            scores = jax.nn.softmax(logits.astype(jnp.float32)) if choice.double_softmax else logits
            auxiliary = auxiliary + losses.cross_entropy(scores, batch["task"])
            metrics["accuracy"] = losses.accuracy(logits, batch["task"])
        metrics["auxiliary"] = auxiliary
        value = SplitLoss(distance, auxiliary) if self._splits else distance + auxiliary
        return value, metrics

    def _distance(self, out: jax.Array, gt: jax.Array) -> jax.Array:
        choice = self._experiment.losses
        if choice.regression == "charbonnier_fft":
            return losses.charbonnier(out, gt) + choice.fft_weight * losses.spectral_distance(out, gt)
        return {"l1": losses.l1, "smooth_l1": losses.smooth_l1}[choice.regression](out, gt)

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        """PSNR and SSIM for each task. A classifier, where there is one, gives the condition, as in use.

        After a stage that keeps an average, the averages (`params`) and the last parameters are both measured.
        """

        def restore(model: RegressionModel, batch: Batch, key: jax.Array) -> Any:
            def restore_one(lq: jax.Array, task: jax.Array) -> Any:
                out, logits = model.restore(lq[None].astype(self._dtype), task[None])
                image = jnp.clip(out[0].astype(jnp.float32), 0, 1)
                return image, None if logits is None else logits[0].astype(jnp.float32)

            # One image at a time, as in use: some networks mix the images of a batch.
            return jax.vmap(restore_one)(batch["lq"], batch["task"])

        compute = tools.compiled("regression", restore)
        measure = lambda values: tools.run(self.name, compute, values, tools.examples())
        results = tools.restorations(self.name, measure(params), final)
        if final and (last := tools.last_parameters(self.name, params)):
            both = {
                "moving averages": results,
                "last parameters": tools.restorations(self.name, measure(last), final=False),
            }
            results["weight_kinds"] = {
                kind: {metric: found["scalars"][f"restored_{metric}"] for metric in ("psnr", "ssim")}
                for kind, found in both.items()
            }
        return results
