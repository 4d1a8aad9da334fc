"""Outputs of the frozen towers for fixed crops, computed once: a step of the dual branch then runs without them.

The examples are the first ones of the stage's own stream of data. They are encoded on the mesh and stored part by
part; an interrupted run continues with the first part that is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.config import PipelineConfig
from data_pipelines.pipeline import TrainBatches, train_batches
from data_pipelines.stored.features import data_fingerprint_fields, part_path, write_part
from data_pipelines.stored.manifest import read_manifest
from mperceiver_jax.checkpoints.bind import bind
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, on_first_process, smallest_of_processes
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig, Observation
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.training.run_context import RunContext

TOWERS = ("vae.encoder.", "vae.quant_conv.", "predictor.model.")
# Examples of one host in a part: what an interruption costs at most.
PART = 1024

Observe = Callable[[MPerceiver, dict[str, jax.Array], jnp.dtype], Observation]
Layout = dict[str, tuple[tuple[int, ...], str]]


def observation_shapes(config: MPerceiverConfig, crop: int, dtype: str) -> Layout:
    """Shape and dtype of what is stored of one example, by the fields of `Observation`."""
    side = crop // config.downscale
    moments = (side, side, 2 * config.vae.latent_channels)
    shapes = {"lq": moments, "gt": moments, "embedding": (config.predictor.vision.embed_width,)}
    return {name: (shapes[name], dtype) for name in Observation._fields}


@dataclass(frozen=True)
class _Plan:
    """The division of the examples into batches and parts.

    Attributes:
        index, hosts: this host's share of every batch, and the number of shares.
        batches: in all.
        per_part: batches in a part.
    """

    index: int
    hosts: int
    batches: int
    per_part: int

    @property
    def parts(self) -> int:
        return -(-self.batches // self.per_part)

    def batches_of(self, part: int) -> range:
        return range(part * self.per_part, min((part + 1) * self.per_part, self.batches))


def fill_cache(context: RunContext, params: Params, config: PipelineConfig, observe: Observe) -> Path:
    """Makes sure that `config.cache` holds the observations of `config.cached_examples` crops; returns its folder.

    The number is rounded up to whole batches.

    Args:
        params: every parameter of the model, as the stages before left them.
        config: the data of the stage that trains on the observations.
        observe: the outputs of the towers for a batch.

    Raises:
        ValueError: the folder was made from other frozen towers or with other settings, or holds other files.
        Preempted: the run was asked to stop; finished parts stay.
    """
    experiment = context.experiment
    folder = Path(experiment.cache)
    index, hosts = sharding.data_share(context.mesh)
    batches = -(-experiment.cached_examples // config.batch_size)
    plan = _Plan(index, hosts, batches, per_part=max(PART // (config.batch_size // hosts), 1))
    layout = observation_shapes(experiment.mperceiver, config.crop, experiment.compute_dtype)
    identity = {
        "towers": fingerprint({k: v for k, v in params.items() if k.startswith(TOWERS)}),
        "data": data_fingerprint_fields(config),
        "layout": layout,
        "examples": batches * config.batch_size,
        "parts": plan.parts,
        "hosts": hosts,
    }
    on_first_process(lambda: bind_cache(folder, identity))
    if _first_missing(folder) is None:
        return folder
    done = 0
    while part_path(folder, done, index).is_file():
        done += 1
    _fill(context, params, config, observe, folder, plan, layout, smallest_of_processes(done))
    return folder


def _fill(
    context: RunContext,
    params: Params,
    config: PipelineConfig,
    observe: Observe,
    folder: Path,
    plan: _Plan,
    layout: Layout,
    done: int,
) -> None:
    """Encodes and stores this host's rows of the parts from number `done` on."""
    calm = replace(config, threads=min(config.threads, 1), prefetch=1)
    observed = _observer(context, observe)
    with (
        train_batches(calm, plan.index, plan.hosts) as batches,
        progress_bar("dual_branch: encoding fixed crops", plan.batches, done * plan.per_part) as bar,
    ):
        batches.set_state({"next_batch": done * plan.per_part})
        for part in range(done, plan.parts):
            examples: list[dict[str, np.ndarray]] = []
            for _ in plan.batches_of(part):
                if context.preemption.requested():
                    raise Preempted(f"dual_branch: stopped after {part} of {plan.parts} parts of {folder}")
                examples += _observe_batch(context, params, batches, observed, plan, config.batch_size)
                bar.update(1)
            write_part(folder, part, plan.index, examples, layout)
    if plan.hosts > 1:
        multihost_utils.sync_global_devices("observations stored")


def _observer(context: RunContext, observe: Observe) -> Callable[..., Observation]:
    """`observed(parameters, batch)`, divided by rows so that every process holds its own."""
    structure, _ = parameters.split(context.model)
    dtype = jnp.dtype(context.experiment.compute_dtype)

    @partial(jax.jit, out_shardings=sharding.batch_sharding(context.mesh))
    @partial(sharding.traced_over, context.mesh)
    def observed(values: Params, batch: dict[str, jax.Array]) -> Observation:
        return observe(parameters.merge(structure, values), batch, dtype)

    return observed


def _observe_batch(
    context: RunContext,
    params: Params,
    batches: TrainBatches,
    observed: Callable[..., Observation],
    plan: _Plan,
    batch_size: int,
) -> list[dict[str, np.ndarray]]:
    """This host's rows of the next batch's observations, one dictionary per example."""
    count = batch_size // plan.hosts
    seen = observed(params, sharding.to_global(context.mesh, next(batches)))
    rows = [sharding.local_rows(value, plan.index * count, count) for value in seen]
    return [dict(zip(Observation._fields, example, strict=True)) for example in zip(*rows, strict=True)]


def bind_cache(folder: Path, identity: dict[str, Any]) -> None:
    """Binds the folder to this identity, or checks that it is bound to it.

    Raises:
        ValueError: the folder belongs to another identity or holds other files; names what differs.
    """
    # A finished cache serves any number of hosts; in an unfinished one each must continue with its own rows.
    free = ("hosts", "parts") if read_manifest(folder) is not None and _first_missing(folder) is None else ()
    try:
        bind(
            folder,
            identity,
            contents="outputs of the frozen towers",
            remedy="give those again, name another directory, or delete it to make it again",
            free=free,
        )
    except ValueError as error:
        raise ValueError(f"config.cache: {error}") from None


def _first_missing(folder: Path) -> Path | None:
    """The first file of the cache that does not exist; None for a finished cache."""
    manifest = read_manifest(folder)
    assert manifest is not None, "the folder is bound"
    paths = (part_path(folder, part, host) for part in range(manifest["parts"]) for host in range(manifest["hosts"]))
    return next((path for path in paths if not path.is_file()), None)
