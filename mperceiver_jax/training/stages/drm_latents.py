"""Latents for the detail refinement module, sampled by the finished dual branch.

Each training example is sampled once, on its crop, and stored in the workdir with its images. An interrupted run
continues with the first example that is missing.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from data_pipelines.pipeline import PipelineConfig, train_batches
from data_pipelines.stored.examples import example_path, write_example
from mperceiver_jax.checkpoints.bind import bind
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.diffusion.restoration import sample_latent, sampler_of, to_model_range
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, on_first_process, smallest_of_processes
from mperceiver_jax.models import parameters
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.training.run_context import RunContext

FOLDER = "drm_latents"


def sample_latents(context: RunContext, params: Params, config: PipelineConfig) -> Path:
    """Makes sure that `losses.drm_examples` sampled examples are in the workdir; returns their folder.

    Args:
        params: every parameter of the model, as the stages before left them.
        config: the data of the stage that trains on the examples.

    Raises:
        ValueError: the examples there were sampled by another model or with other settings.
        Preempted: the run was asked to stop; finished examples stay.
    """
    experiment = context.experiment
    folder, wanted = context.workdir / FOLDER, experiment.losses.drm_examples
    identity = {
        "parameters": fingerprint({k: v for k, v in params.items() if not k.startswith("drm.")}),
        "sampler": vars(experiment.sampler),
        "seed": experiment.seed,
        "crop": config.crop,
    }
    remedy = "delete the folder to sample them again"
    on_first_process(lambda: bind(folder, identity, contents="latents of the dual branch", remedy=remedy))
    config = replace(
        config, seed=context.streams.integer("data/drm_latents"), threads=min(config.threads, 1), prefetch=1
    )
    done = smallest_of_processes(_done(context, folder, config, wanted))
    if done < wanted:
        _sample(context, params, config, folder, range(done, wanted, config.batch_size))
    return folder


def _local(context: RunContext, config: PipelineConfig) -> tuple[int, int]:
    """(this host's first row of a batch, its number of rows)."""
    index, share = sharding.data_share(context.mesh)
    count = config.batch_size // share
    return index * count, count


def _done(context: RunContext, folder: Path, config: PipelineConfig, wanted: int) -> int:
    """Number of examples in the leading batches whose rows of this host are all stored."""
    first, count = _local(context, config)
    done = 0
    while done < wanted:
        numbers = range(done + first, min(done + first + count, wanted))
        if not all(example_path(folder, number).is_file() for number in numbers):
            break
        done += config.batch_size
    return done


def _sample(context: RunContext, params: Params, config: PipelineConfig, folder: Path, starts: range) -> None:
    """Samples and stores the batches whose first examples have the numbers `starts`."""
    wanted, (first, count) = starts.stop, _local(context, config)
    sampled = _sampler(context)
    with (
        train_batches(config, *sharding.data_share(context.mesh)) as batches,
        progress_bar("drm: sampling latents", wanted, starts.start) as bar,
    ):
        batches.set_state({"next_batch": starts.start // config.batch_size})
        for start in starts:
            if context.preemption.requested():
                raise Preempted(f"drm: stopped after {start} of {wanted} sampled latents, stored in {folder}")
            batch = next(batches)
            key = context.streams.key("drm_latents", start)
            latent = sampled(params, sharding.to_global(context.mesh, batch), key)
            rows = sharding.local_rows(latent, first, count)
            for k, number in enumerate(range(start + first, min(start + first + count, wanted))):
                write_example(folder, number, {name: v[k] for name, v in batch.items()} | {"latent": rows[k]})
            bar.update(min(config.batch_size, wanted - start))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sampled latents stored")


def _sampler(context: RunContext) -> Callable[..., jax.Array]:
    """`sampled(parameters, batch, key) -> float32 latents`, divided by rows so that every process holds its own."""
    structure, _ = parameters.split(context.model)
    dtype = jnp.dtype(context.experiment.compute_dtype)
    sampler = sampler_of(context.experiment.sampler)

    @partial(jax.jit, out_shardings=sharding.batch_sharding(context.mesh))
    def sampled(values: Params, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        model = parameters.merge(structure, values)
        lq = to_model_range(batch["lq"], dtype)
        latent, _ = sample_latent(model, sampler, lq, batch["lq_clip"].astype(dtype), key)
        return latent.astype(jnp.float32)

    return sampled
