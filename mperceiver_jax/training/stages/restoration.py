"""The held-out evaluation of the stages that restore by sampling: `dual_branch` and `drm`."""

from typing import Any

import jax
import jax.numpy as jnp

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.diffusion.restoration import sample_latent, sampler_of, to_model_range
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.training.run_context import HeldoutTools, Results
from mperceiver_jax.training.stages.base import Batch, to_unit_range


def evaluate_restoration(
    stage: str, experiment: Experiment, tools: HeldoutTools, params: Params, final: bool, *, refine: bool
) -> Results:
    """PSNR and SSIM of degraded and restored images for each task, and the predictor's confusion.

    Args:
        refine: decode with the detail refinement module.
    """
    sampler, dtype = sampler_of(experiment.sampler), jnp.dtype(experiment.compute_dtype)

    def sampled(model: MPerceiver, batch: Batch, key: jax.Array) -> Any:
        lq = to_model_range(batch["lq"], dtype)
        return sample_latent(model, sampler, lq, batch["lq_clip"].astype(dtype), key)

    def decoded(model: MPerceiver, batch: Batch, latent: jax.Array, condition: Any) -> jax.Array:
        if not refine:
            return to_unit_range(model.decode(latent))
        lq = to_model_range(batch["lq"], dtype)
        return to_unit_range(model.decode(latent, lq, condition.taps, condition.logits))

    # Sampling, the expensive part, is compiled once for both stages.
    sample, decode = tools.compiled("sample", sampled), tools.compiled(f"decode for {stage}", decoded)

    def restore(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        latent, condition = sample(params, batch, key)
        return decode(params, batch, latent, condition), condition.logits.astype(jnp.float32)

    return tools.restorations(stage, tools.run(stage, restore, params, tools.examples()), final)
