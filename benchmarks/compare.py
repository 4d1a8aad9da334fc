"""One table of several systems: their size, arithmetic, speed and memory, and what they learn in an equal time.

Every system is a configuration; its network runs on random pictures, forward and in the training step that
`main` would run. With --seconds each is then trained for about that long from nothing, on the bundled photographs
or what --photos names, and measured on held-out ones (compiling and evaluation come on top).
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flop import flop
from benchmarks.timing import program_memory
from mperceiver_jax.config import Experiment, from_mapping
from mperceiver_jax.evaluate.report import table
from mperceiver_jax.models import parameters
from mperceiver_jax.models.regression import RegressionModel
from mperceiver_jax.training.optimizer import make_optimizer
from mperceiver_jax.training.stages import build_stage
from mperceiver_jax.training.step import initial_state, make_step

DEFAULT = tuple(f"configs/{name}.py:small" for name in ("promptir", "am_promptir", "pip", "mioir"))
EXAMPLES = """\
examples:
  the four recipes for any machine, two minutes of training each
    python -m benchmarks.compare --seconds=120
  networks of full size on an accelerator
    python -m benchmarks.compare configs/promptir.py:3task configs/pip.py:5task --size=128 --batch=8 --output=table.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        rows = [compare(name, options) for name in options.configs]
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(f"{options.size} px, batch {options.batch}, on {jax.devices()[0].device_kind}; medians of {options.repeats}")
    print(table(columns, [[_text(row.get(column)) for column in columns] for row in rows]))
    if options.output is not None:
        partial = options.output.with_name(options.output.name + ".partial")
        partial.write_text(json.dumps(rows, indent=2) + "\n")
        partial.replace(options.output)
    return 0


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: what was measured of one configuration.

    Raises:
        FileNotFoundError, ValueError: the configuration cannot be read, or is not of a restorer by regression.
    """
    experiment = _experiment(name)
    model = experiment.build()
    if not isinstance(model, RegressionModel):
        raise ValueError(f"{name}: {experiment.title} is no restorer by regression; see benchmarks.sample")
    params = {k: jnp.asarray(v) for k, v in parameters.initial_values(model, 0, lambda path, value: value).items()}
    batch = _batch(options.size, options.batch, len(experiment.tasks))
    structure, _ = parameters.split(model)

    def forward(values: Any, lq: jax.Array, task: jax.Array) -> jax.Array:
        return parameters.merge(structure, values).restore(lq, task)[0]

    program = jax.jit(forward).lower(params, batch["lq"], batch["task"]).compile()
    seconds = _median(lambda: program(params, batch["lq"], batch["task"]), options.repeats)
    pixels = options.batch * options.size**2
    row: dict[str, Any] = {
        "system": name.removeprefix("configs/"),
        "parameters": sum(value.size for value in params.values()),
        "GFLOP per megapixel": flop(forward, params, batch["lq"], batch["task"]) / pixels * 1e-3,
        "images/s": options.batch / seconds,
    }
    step_seconds, memory = _training_step(experiment, model, params, batch, options.repeats)
    row |= {"images/s, training": options.batch / step_seconds}
    if memory is not None:
        row["GiB, training"] = memory / 2**30
    return row | (_trained(experiment, model, params, options) if options.seconds else {})


def _training_step(
    experiment: Experiment, model: RegressionModel, params: Any, batch: Any, repeats: int
) -> tuple[float, int | None]:
    """(median seconds of an update, bytes that its program needs)."""
    config = next(iter(experiment.stages.values()))
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(build_stage("regression", experiment, model).loss, optimizer, ema_decay=config.ema_decay)
    state = jax.jit(lambda values: initial_state(values, optimizer, config.ema_decay > 0))(params)
    key = jax.random.key(0)
    program = jax.jit(step, donate_argnums=0).lower(state, {}, batch, key).compile()
    current = [state]

    def update() -> Any:
        current[0], metrics = program(current[0], {}, batch, key)
        return metrics

    return _median(update, repeats), program_memory(program)


def _trained(
    experiment: Experiment, model: RegressionModel, params: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """PSNR and SSIM of held-out pictures after training for about `options.seconds`."""
    from mperceiver_jax.evaluate.heldout import HeldOut
    from mperceiver_jax.training.run import run_experiment

    config = experiment.stages["regression"]
    batch = _batch(config.crop, config.batch_size, len(experiment.tasks))
    seconds, _ = _training_step(experiment, model, params, batch, 3)
    steps = max(int(options.seconds / seconds), 1)
    stage = replace(config, steps=steps, curriculum=())
    data = replace(experiment.data, photos=options.photos, heldout_photos=options.heldout_photos)
    evaluation = replace(experiment.evaluation, per_task=options.per_task)
    experiment = replace(experiment, stages={"regression": stage}, data=data, evaluation=evaluation)
    with tempfile.TemporaryDirectory() as folder:
        records = run_experiment(experiment, Path(folder) / "run", HeldOut)
    if not records:
        raise ValueError("stopped")
    found = records[-1]["scalars"]
    return {
        "updates": steps,
        "PSNR, degraded": found["degraded_psnr"],
        "PSNR, restored": found["restored_psnr"],
        "SSIM, restored": found["restored_ssim"],
        "tasks": len(records[-1]["tasks"]),
    }


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("configs", nargs="*", default=DEFAULT, metavar="FILE:VARIANT", help="default: the four :small")
    result.add_argument("--size", type=int, default=96, metavar="PIXELS", help="side (default: %(default)s)")
    result.add_argument("--batch", type=int, default=4, metavar="N", help="pictures at a time (default: %(default)s)")
    result.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds timed (default: %(default)s)")
    result.add_argument("--seconds", type=float, default=0, metavar="S", help="of training each; 0 trains none")
    result.add_argument("--per-task", type=int, default=16, metavar="N", help="held-out pictures of each task")
    result.add_argument("--photos", default="", metavar="DIR", help="clean photographs to train on")
    result.add_argument("--heldout-photos", default="", metavar="DIR", help="clean photographs to measure on")
    result.add_argument("--output", type=Path, metavar="FILE.json", help="also write the rows there")
    return result


def _experiment(name: str) -> Experiment:
    file, _, variant = name.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such configuration")
    spec = importlib.util.spec_from_file_location("compared", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_mapping(Experiment, (module.get_config(variant) if variant else module.get_config()).to_dict())


def _batch(side: int, count: int, tasks: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    pictures = {name: jnp.asarray(rng.random((count, side, side, 3), np.float32)) for name in ("lq", "gt")}
    return pictures | {"task": jnp.arange(count, dtype=jnp.int32) % tasks}


def _median(run: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(run())
        if turn:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "–")


if __name__ == "__main__":
    sys.exit(main())
