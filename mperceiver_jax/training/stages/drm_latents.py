"""Latents for the detail refinement module, produced by the finished dual branch.

Each training example is sampled once, on its crop, and stored in the workdir with its
images. An interrupted run goes on where it stopped.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.pipeline import PipelineConfig, train_batches
from data_pipelines.stored.examples import example_path, read_note, write_example, write_manifest
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.diffusion.restoration import sample_latent, sampler_of
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, on_first_process
from mperceiver_jax.models import parameters
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.progress import progress_bar

if TYPE_CHECKING:
    from mperceiver_jax.training.loop import Run

FOLDER = "drm_latents"


def sample_latents(run: "Run", params: Params, config: PipelineConfig) -> Path:
    """Makes sure that `losses.drm_examples` sampled examples lie in the workdir; returns their folder.

    Raises:
        ValueError: examples there were sampled by another model or with other settings.
    """
    experiment = run.experiment
    folder, wanted = run.workdir / FOLDER, experiment.losses.drm_examples
    note = {
        "parameters": fingerprint({k: v for k, v in params.items() if not k.startswith("drm.")}),
        "sampler": vars(experiment.sampler),
        "seed": experiment.seed,
        "crop": config.crop,
    }
    on_first_process(lambda: _claim(folder, note))
    config = replace(config, seed=config.seed + 1, threads=min(config.threads, 1), prefetch=1)
    index, share = sharding.data_share(run.mesh)
    local = config.batch_size // share
    batches = train_batches(config, index, share)
    done = 0
    while done < wanted and all(
        example_path(folder, done + index * local + k).is_file()
        for k in range(local)
        if done + index * local + k < wanted
    ):
        done += config.batch_size
    if share > 1:
        done = int(np.min(multihost_utils.process_allgather(np.asarray(done))))
    if done >= wanted:
        batches.close()
        return folder

    structure, _ = parameters.split(run.model)
    dtype = jnp.dtype(experiment.compute_dtype)
    sampler = sampler_of(experiment.sampler)

    # Divided by rows, so that every process finds its own examples in what it holds.
    @partial(jax.jit, out_shardings=sharding.batch_sharding(run.mesh))
    def sampled(values, batch, key):
        model = parameters.merge(structure, values)
        lq = (batch["lq"] * 2 - 1).astype(dtype)
        latent, _ = sample_latent(model, sampler, lq, batch["lq_clip"].astype(dtype), key)
        return latent.astype(jnp.float32)

    with batches, progress_bar("drm: sampling latents", wanted, min(done, wanted)) as bar:
        batches.set_state({"next_batch": done // config.batch_size})
        for start in range(done, wanted, config.batch_size):
            if run.preemption.requested():
                raise Preempted(f"drm: stopped after {start} of {wanted} sampled latents, stored in {folder}")
            batch = next(batches)
            key = jax.random.fold_in(jax.random.key(experiment.seed), start)
            latent = sampled(params, sharding.to_global(run.mesh, batch), key)
            own = local_rows(latent, index * local, local)
            for k in range(local):
                number = start + index * local + k
                if number < wanted:
                    write_example(folder, number, {name: v[k] for name, v in batch.items()} | {"latent": own[k]})
            bar.update(min(config.batch_size, wanted - start))
    if share > 1:
        multihost_utils.sync_global_devices("sampled latents stored")
    return folder


def local_rows(value: jax.Array, first: int, count: int) -> np.ndarray:
    """This process's rows of an array divided by rows over the mesh."""
    if value.is_fully_addressable:
        return np.asarray(value)[first : first + count]
    rows = {shard.index[0].start or 0: np.asarray(shard.data) for shard in value.addressable_shards}
    return np.concatenate([rows[start] for start in sorted(rows)])


def _claim(folder: Path, note: dict) -> None:
    found = read_note(folder)
    if found is None:
        write_manifest(folder, note)
    elif found != note:
        differing = [name for name in note if found.get(name) != note[name]]
        raise ValueError(
            f"{folder} holds latents of another model or sampler (differing: {', '.join(differing)}); "
            "delete the folder to sample them anew"
        )
