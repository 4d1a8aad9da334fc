"""Compiles the programs of a configuration for TPUs that are not in this machine; tabulates memory and traffic.

    python -m benchmarks.tpu_programs --targets=v5e:2x4
    python -m benchmarks.tpu_programs configs/allinone.py:sd21 --targets=v5e:2x4,v5p:2x2x2,v6e:2x4 --output=tpu.json

Needs libtpu (pip install 'mperceiver-jax[tpu]'), no TPU. Memory is of one chip: arguments are parameters, optimizer
and batch, temporaries are activations. Collectives are counted in the compiled program, those inside a loop once.
A program that needs more memory than the chip has is listed with what the compiler says.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.systems import load_experiment
from data_pipelines.files import write_atomically
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.diffusion.restoration import restore_batch, sampler_of
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.distributed.topology import MEMORY_GIB, target_mesh
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.evaluate.report import table
from mperceiver_jax.models import parameters
from mperceiver_jax.training.lowering import lower_step

SAMPLING = "sampling"
COLUMNS = (
    "program", "target", "images a chip", "arguments, GiB", "temporaries, GiB", "of, GiB", "fits", "collectives",
    "MiB moved", "compiling, s",
)  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 where a program does not compile or does not fit, 2 for options that are wrong."""
    options = _parser().parse_args(arguments)
    config = MeshConfig(data=-1, fsdp=options.fsdp, model=options.model)
    try:
        experiment = load_experiment(options.config)
        meshes = {target: target_mesh(target, config) for target in options.targets.split(",")}
        programs = options.programs.split(",") if options.programs else [*experiment.stages, SAMPLING]
        if unknown := sorted(set(programs) - {*experiment.stages, SAMPLING}):
            raise ConfigError(f"--programs: {unknown[0]!r}; there are {', '.join([*experiment.stages, SAMPLING])}")
    except (ValueError, OSError) as error:
        print(f"tpu_programs: {error}", file=sys.stderr)
        return 2
    rows = []
    for target, mesh in meshes.items():
        for program in programs:
            rows.append(compile_program(experiment, program, target, mesh, options.per_chip))
            print(f"tpu_programs: {rows[-1]}", file=sys.stderr, flush=True)
            if options.output is not None:
                write_atomically(options.output, json.dumps(rows, indent=2).encode())
    print(table(list(COLUMNS), [[_text(row.get(column)) for column in COLUMNS] for row in rows]))
    return 0 if all(row["fits"] == "yes" for row in rows) else 1


def compile_program(experiment: Experiment, program: str, target: str, mesh: Mesh, per_chip: int) -> dict[str, Any]:
    """One row of the table.

    Args:
        program: name of a stage, whose step is compiled, or `SAMPLING`.
    """
    images = per_chip * mesh.shape["data"] * mesh.shape["fsdp"]
    row: dict[str, Any] = {"program": program, "target": target, "images a chip": per_chip}
    began = time.monotonic()
    lowered = _lower(experiment, program, mesh, images)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return row | {"fits": "no", "error": str(error).splitlines()[0][:300]}
    memory, gib = compiled.memory_analysis(), 2**30
    assert memory is not None, "the compiler for TPUs analyses memory"
    kind = mesh.devices.flat[0].device_kind
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    counts, moved = collectives(compiled.as_text() or "")
    return row | {
        "arguments, GiB": memory.argument_size_in_bytes / gib,
        "temporaries, GiB": memory.temp_size_in_bytes / gib,
        "of, GiB": MEMORY_GIB.get(kind),
        "fits": "yes" if needed <= MEMORY_GIB.get(kind, 0) * gib else "no",
        "collectives": ", ".join(f"{count} {name}" for name, count in counts.items()) or "none",
        "MiB moved": moved / 2**20,
        "compiling, s": time.monotonic() - began,
    }


def collectives(text: str) -> tuple[Counter[str], int]:
    """(collectives of a compiled program by kind, bytes of their results)."""
    counts: Counter[str] = Counter()
    moved = 0
    for shapes, name in re.findall(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text):
        counts[name] += 1
        for kind, sides in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            size = 1
            for side in filter(None, sides.split(",")):
                size *= int(side)
            bits = int(re.sub(r"\D", "", kind) or 8)
            moved += size * bits // 8
    return counts, moved


def _lower(experiment: Experiment, program: str, mesh: Mesh, images: int) -> jax.stages.Lowered:
    model = experiment.build()
    if program != SAMPLING:
        stage = replace(experiment.stages[program], batch_size=images, accumulation=1)
        return lower_step(replace(experiment, stages={**experiment.stages, program: stage}), model, program, mesh)
    structure, declared = parameters.split(model)
    dtype, data = jnp.dtype(experiment.compute_dtype), experiment.data
    spread = sharding.batch_sharding(mesh)
    size, side = data.image_size or data.crop, data.clip_size
    views = (data.clip_views, side, side, 3) if data.clip_view == "native" else (side, side, 3)
    image = jax.ShapeDtypeStruct((images, size, size, 3), dtype, sharding=spread)
    view = jax.ShapeDtypeStruct((images, *views), dtype, sharding=spread)
    values = {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in declared.items()}
    sampler = sampler_of(experiment.sampler)

    def restore(values: Any, image: jax.Array, view: jax.Array, key: jax.Array) -> Any:
        return restore_batch(parameters.merge(structure, values), sampler, image, view, key)

    layout = sharding.ParameterLayout(mesh, experiment.mesh.rules)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(sharding.traced_over(mesh, restore)).lower(layout.abstract(values), image, view, key)


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_programs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "config", nargs="?", default="configs/allinone.py:small", metavar="FILE:VARIANT", help="default: %(default)s"
    )
    result.add_argument("--targets", default="v5e:2x4", metavar="LIST", help="slices (default: %(default)s)")
    result.add_argument("--programs", default="", metavar="LIST", help=f"stages and {SAMPLING} (default: all)")
    result.add_argument("--per-chip", type=int, default=1, metavar="N", help="images a chip (default: %(default)s)")
    result.add_argument("--fsdp", type=int, default=1, metavar="N", help="size of this axis (default: %(default)s)")
    result.add_argument("--model", type=int, default=1, metavar="N", help="size of this axis (default: %(default)s)")
    result.add_argument("--output", type=Path, metavar="FILE.json", help="also write the rows there, one by one")
    return result


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "–" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
