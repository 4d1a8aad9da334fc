"""The first lines of a run: the model, its parameters, the stages and their estimated cost."""

from pathlib import Path

import jax
from clu import parameter_overview

from data_pipelines.files import write_atomically
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training import cost_estimate
from mperceiver_jax.training.records import read_record


def announce(experiment: Experiment, model: RestorationModel, names: list[str], workdir: Path, warning: str) -> None:
    """Prints what the run will do, before it begins.

    Args:
        names: of the stages that run.
        warning: appended to the first line.
    """
    device = jax.devices()[0]
    reason = f" ({experiment.variant_reason})" if experiment.variant_reason else ""
    print(
        f"mperceiver_jax: {experiment.title}, variant {experiment.variant}{reason} on {jax.device_count()} x "
        f"{device.device_kind}, {jax.process_count()} process(es), workdir {workdir}{warning}",
        flush=True,
    )
    parts = part_sizes(model)
    sizes = ", ".join(f"{part} {size / 1e6:.2f} M" for part, size in parts.items())
    print(f"  parameters: {sum(parts.values()):,} ({sizes}); all are listed in {workdir / 'parameters.txt'}")
    remaining = [name for name in names if read_record(workdir, name) is None]
    for name in names:
        if name not in remaining:
            print(f"  {name:<12} done before")
    if remaining:
        plans = [cost_estimate.plan_stage(experiment, model, name) for name in remaining]
        rate = cost_estimate.convolution_rate(jax.numpy.dtype(experiment.compute_dtype))
        print("\n".join(cost_estimate.describe(plans, rate, jax.device_count())), flush=True)


def part_sizes(model: RestorationModel) -> dict[str, int]:
    """Number of parameters of each part of a model, by the first component of their paths."""
    parts: dict[str, int] = {}
    for path, leaf in parameters.split(model)[1].items():
        part = path.split(".")[0]
        parts[part] = parts.get(part, 0) + leaf.size
    return parts


def write_overview(model: RestorationModel, workdir: Path) -> None:
    """Writes a table of all parameters to `parameters.txt` in the workdir."""
    _, declared = parameters.split(model)
    overview = parameter_overview.get_parameter_overview(declared, include_stats=False)
    write_atomically(workdir / "parameters.txt", (overview + "\n").encode())
