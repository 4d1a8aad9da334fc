"""The stage `predictor`: the classifier of degradations, its head alone or with its image tower."""

import jax
import jax.numpy as jnp

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training import losses
from mperceiver_jax.training.run_context import HeldoutTools, Results
from mperceiver_jax.training.stages.base import Batch, StageBase
from mperceiver_jax.training.step import Metrics


class PredictorStage(StageBase):
    """Focal loss or cross-entropy of the predicted task. The predictor sees the CLIP view only."""

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel):
        tower = experiment.losses.train_tower
        super().__init__(
            name,
            experiment,
            model,
            title=f"degradation predictor {'with its image tower' if tower else 'head'}",
            trainable=r"predictor\." if tower else r"predictor\.fc[12]\.",
        )

    def loss(self, params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        choice = self._experiment.losses
        _, logits = self._assembled(params).predictor(batch["lq_clip"].astype(self._dtype))
        if choice.predictor == "focal":
            value = losses.focal_loss(logits, batch["task"], choice.focal_gamma)
        else:
            value = losses.cross_entropy(logits, batch["task"])
        return value, {"accuracy": losses.accuracy(logits, batch["task"])}

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        def logits(model: MPerceiver, batch: Batch, key: jax.Array) -> jax.Array:
            return model.perceive(batch["lq_clip"].astype(self._dtype))[1].astype(jnp.float32)

        return tools.classifications(
            tools.run("predictor", tools.compiled("predictor", logits), params, tools.examples())
        )
