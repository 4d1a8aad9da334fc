"""Restoring images: conditions, every step of a sampler, decoding with the detail refinement."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import report
from benchmarks.flop import flop
from benchmarks.subject import Subject, part_flop, random_batch, random_values
from benchmarks.timing import PEAK, compiled, matrix_product, measure
from mperceiver_jax.diffusion.dpm_solver import DPMSolver
from mperceiver_jax.diffusion.restoration import Sampler, restore_batch
from mperceiver_jax.diffusion.samplers import DDIM
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver

EXAMPLES = """\
  python -m benchmarks.sample
  python -m benchmarks.sample --variant=sd21 --samplers=ddim:50,dpmpp_2m:20 --output=sample.json
"""


def sampler(text: str) -> Sampler:
    """`ddim:50` or `dpmpp_2m:20`."""
    name, _, steps = text.partition(":")
    if name not in ("ddim", "dpmpp_2m") or not steps.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:STEPS with a NAME of ddim or dpmpp_2m")
    try:
        return (DDIM if name == "ddim" else DPMSolver)(Schedule(), int(steps))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def benchmark(options: Any) -> tuple[Subject, dict[str, Any]]:
    chosen = report.subject_of(options, batch=options.batch or 1)
    model = MPerceiver(chosen.model)
    structure, _ = parameters.split(model)
    values, batch, key = random_values(model, chosen.dtype), random_batch(chosen), jax.random.key(0)
    lq, view = ((batch[name]).astype(chosen.dtype) for name in ("lq", "lq_clip"))
    candidates = {PEAK: matrix_product(chosen.dtype)}
    per_image = part_flop(chosen.model, chosen.size)
    for one in options.samplers:

        def restored(values, lq, view, key, one=one):
            return restore_batch(parameters.merge(structure, values), one, lq, view, key)[0]

        work = flop(restored, values, lq, view, key)
        name = f"{one.name}, {one.steps} steps"
        candidates[name] = compiled(restored, values, lq, view, key, flop=work, images=chosen.batch)
        per_image[name] = work / chosen.batch
    results = measure(candidates, repeats=options.repeats, warm_up=1)
    return chosen, {"flop_per_image": per_image, "results": results}


def main(arguments: Sequence[str] | None = None) -> int:
    options = report.parser("sample", __doc__, EXAMPLES)
    options.add_argument(
        "--samplers",
        type=lambda text: [sampler(one) for one in text.split(",")],
        default="ddim:50,dpmpp_2m:20",
        metavar="NAME:STEPS,...",
        help="ddim or dpmpp_2m, each with its number of steps (default: %(default)s); images at a time: 1",
    )
    return report.run("sample", benchmark, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
