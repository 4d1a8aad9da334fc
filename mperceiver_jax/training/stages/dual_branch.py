"""The stage `dual_branch`: modulators, IR-Adapter, textual prompts and CM inversion; all else is frozen."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from data_pipelines.pipeline import TrainBatches
from data_pipelines.stored.features import feature_batches
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import data_config
from mperceiver_jax.diffusion.restoration import to_model_range
from mperceiver_jax.distributed import sharding
from mperceiver_jax.models.mperceiver.model import Condition, MPerceiver, Observation
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training import losses
from mperceiver_jax.training.run_context import HeldoutTools, Results, RunContext
from mperceiver_jax.training.stages.base import (
    SCHEDULE,
    Batch,
    BatchSpec,
    StageBase,
    diffusion_target,
    timesteps_and_noise,
)
from mperceiver_jax.training.stages.feature_cache import fill_cache, observation_shapes
from mperceiver_jax.training.stages.restoration import evaluate_restoration
from mperceiver_jax.training.step import Metrics


class DualBranchStage(StageBase):
    """Prediction of the noise (or velocity) under both branches: the text context, and the adapter's features of
    the degraded image. With `config.cache` it trains on stored outputs of the frozen towers, see `feature_cache`."""

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel):
        trainable = r"unet\..*\.spade\.|ir_adapter\.|tp$" + (r"|cm_inv\." if experiment.losses.train_cm_inv else "")
        title = "modulators, IR-Adapter, textual prompts, CM inversion"
        super().__init__(name, experiment, model, title=title, trainable=trainable)
        self.size_multiple = experiment.mperceiver.multiple

    def batch_spec(self, size: int) -> BatchSpec:
        experiment = self._experiment
        if not experiment.cache:
            return super().batch_spec(size)
        shapes = observation_shapes(experiment.mperceiver, self._crop, experiment.compute_dtype)
        return {name: jax.ShapeDtypeStruct((size, *shape), jnp.dtype(dtype)) for name, (shape, dtype) in shapes.items()}

    def batches(self, context: RunContext, params: Params) -> TrainBatches:
        if not context.experiment.cache:
            return super().batches(context, params)
        config = data_config(context.experiment, self.name)
        folder = fill_cache(context, params, config, observe)
        return feature_batches(str(folder), config, *sharding.data_share(context.mesh))

    def loss(self, params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        model = self._assembled(params)
        key_gt, key_lq, key_t, key_n = jax.random.split(key, 4)
        seen = observe(model, batch, self._dtype)
        shape = (*seen.gt.shape[:-1], seen.gt.shape[-1] // 2)
        z = model.latent(seen.gt, jax.random.normal(key_gt, shape, self._dtype))
        z_lq = model.latent(seen.lq, jax.random.normal(key_lq, shape, self._dtype))
        logits = model.predictor.head(seen.embedding)
        condition = Condition(z_lq, (), logits, model.context(seen.embedding, logits))
        t, noise = timesteps_and_noise(key_t, key_n, z)
        out = model.predict(SCHEDULE.add_noise(z, noise, t), t, condition)
        target = diffusion_target(self._experiment.mperceiver.prediction, z, noise, t)
        return losses.mean_squared_error(out, target), {}

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        return evaluate_restoration(self.name, self._experiment, tools, params, final, refine=False)


def observe(model: MPerceiver, batch: Mapping[str, jax.Array], dtype: jnp.dtype) -> Observation:
    """The outputs of the frozen towers for a batch of images, or those stored in the batch."""
    if "embedding" in batch:
        return Observation(**{name: batch[name].astype(dtype) for name in Observation._fields})
    lq, gt = (to_model_range(batch[name], dtype) for name in ("lq", "gt"))
    return model.observe(lq, gt, batch["lq_clip"].astype(dtype))
