"""What the frozen towers make of fixed crops, computed once: a step of the dual branch then runs without them.

The examples are the first ones of the stage's own stream of data. They are encoded on the mesh and
stored part by part; an interrupted run goes on with the first part that is missing.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.pipeline import PipelineConfig, train_batches
from data_pipelines.stored.examples import read_note, write_manifest
from data_pipelines.stored.features import data_fingerprint_fields, part_path, write_part
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, on_first_process
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiverConfig, Observation
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.training.stages.drm_latents import local_rows
from mperceiver_jax.training.stages.registry import observation

if TYPE_CHECKING:
    from mperceiver_jax.training.loop import Run

TOWERS = ("vae.encoder.", "vae.quant_conv.", "predictor.model.")
# Examples of one host in a part: what an interruption costs at most.
PART = 1024


def observation_shapes(config: MPerceiverConfig, crop: int, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of what is stored of one example, by the fields of `Observation`."""
    side = crop // config.downscale
    moments = (side, side, 2 * config.vae.latent_channels)
    shapes = {"lq": moments, "gt": moments, "embedding": (config.predictor.vision.embed_width,)}
    return {name: (shapes[name], dtype) for name in Observation._fields}


def fill_cache(run: "Run", params: Params, config: PipelineConfig) -> Path:
    """Makes sure that `config.cache` holds the observations of `config.cached_examples` crops; returns it.

    The number is rounded up to whole batches.

    Args:
        params: every parameter of the model, as the stages before left them.
        config: the data of the stage that will train on it.

    Raises:
        ValueError: the folder was made from other frozen towers or with other settings, or is another's.
        Preempted: asked to stop; finished parts stay.
    """
    experiment = run.experiment
    folder = Path(experiment.cache)
    index, hosts = sharding.data_share(run.mesh)
    local = config.batch_size // hosts
    batches_wanted = -(-experiment.cached_examples // config.batch_size)
    per_part = max(PART // local, 1)
    layout = observation_shapes(experiment.mperceiver, config.crop, experiment.compute_dtype)
    parts = -(-batches_wanted // per_part)
    note = {
        "towers": fingerprint({k: v for k, v in params.items() if k.startswith(TOWERS)}),
        "data": data_fingerprint_fields(config),
        "layout": layout,
        "examples": batches_wanted * config.batch_size,
        "parts": parts,
        "hosts": hosts,
    }
    on_first_process(lambda: claim(folder, note))
    found = read_note(folder)
    assert found is not None
    if _missing(folder, found) is None:
        return folder
    done = 0
    while part_path(folder, done, index).is_file():
        done += 1
    if hosts > 1:
        done = int(np.min(multihost_utils.process_allgather(np.asarray(done))))

    structure, _ = parameters.split(run.model)
    dtype = jnp.dtype(experiment.compute_dtype)

    # Divided by rows, so that every process finds its own examples in what it holds.
    @partial(jax.jit, out_shardings=sharding.batch_sharding(run.mesh))
    def observed(values, batch):
        return observation(parameters.merge(structure, values), batch, dtype)

    calm = replace(config, threads=min(config.threads, 1), prefetch=1)
    with (
        train_batches(calm, index, hosts) as batches,
        progress_bar("dual_branch: encoding fixed crops", batches_wanted, done * per_part) as bar,
    ):
        batches.set_state({"next_batch": done * per_part})
        for part in range(done, parts):
            examples: list[dict[str, np.ndarray]] = []
            for _ in range(part * per_part, min((part + 1) * per_part, batches_wanted)):
                if run.preemption.requested():
                    raise Preempted(f"dual_branch: stopped after {part} of {parts} parts of {folder}")
                seen = observed(params, sharding.to_global(run.mesh, next(batches)))
                rows = [local_rows(value, index * local, local) for value in seen]
                examples += [
                    dict(zip(Observation._fields, example, strict=True)) for example in zip(*rows, strict=True)
                ]
                bar.update(1)
            write_part(folder, part, index, examples, layout)
    if hosts > 1:
        multihost_utils.sync_global_devices("observations stored")
    return folder


def claim(folder: Path, note: dict[str, Any]) -> None:
    """Makes the folder this note's, or finds that it is.

    Raises:
        ValueError: something else lies there; names what differs.
    """
    note = json.loads(json.dumps(note))
    found = read_note(folder)
    if found is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"config.cache: {folder} is not empty and holds no features of ours; name a new directory")
        write_manifest(folder, note)
        return
    # Finished, it serves any number of hosts; unfinished, each must go on with its own rows.
    divided = () if _missing(folder, found) is None else ("hosts", "parts")
    differing = [name for name in ("towers", "layout", "examples", *divided) if found.get(name) != note[name]]
    before, now = found.get("data", {}), note["data"]
    differing += [f"data.{name}" for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        raise ValueError(
            f"config.cache: {folder} was made from other frozen towers or settings (differing: "
            f"{', '.join(differing)}); give those again, name another directory, or delete it to make it anew"
        )


def _missing(folder: Path, note: dict[str, Any]) -> Path | None:
    """The first file that is not there yet."""
    paths = (part_path(folder, part, host) for part in range(note["parts"]) for host in range(note["hosts"]))
    return next((path for path in paths if not path.is_file()), None)
