"""The frozen towers: VAE encoder (one image, or both of a pair in one batch), VAE decoder, CLIP."""

import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from benchmarks import report
from benchmarks.flop import flop
from benchmarks.subject import Subject, random_batch, random_values
from benchmarks.timing import PEAK, compiled, matrix_product, measure
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver

EXAMPLES = """\
  python -m benchmarks.encode
  python -m benchmarks.encode --variant=sd21 --batch=16 --dtype=bfloat16 --output=encode.json
"""


def benchmark(options: Any) -> tuple[Subject, dict[str, Any]]:
    chosen = report.subject_of(options)
    model = MPerceiver(chosen.model)
    structure, _ = parameters.split(model)
    batch = {name: value.astype(chosen.dtype) for name, value in random_batch(chosen).items()}
    latent = jnp.ones((chosen.batch, *chosen.latent), chosen.dtype)
    values = random_values(model, chosen.dtype)
    # The name of what is run, the parameters it needs, how it is run, and on what.
    towers = {
        "vae encode": ("vae.", lambda m, x: m.vae.encode(x).moments, (batch["lq"],)),
        "vae encode, a pair in one batch": (
            "vae.",
            lambda m, a, b: [p.moments for p in m.vae.encode_pair(a, b)],
            (batch["lq"], batch["gt"]),
        ),
        "vae decode": ("vae.", lambda m, z: m.vae.decode(z), (latent,)),
        "clip": ("predictor.", lambda m, x: m.predictor(x), (batch["lq_clip"],)),
    }
    candidates = {PEAK: matrix_product(chosen.dtype)}
    for name, (prefix, run, inputs) in towers.items():
        own = {path: value for path, value in values.items() if path.startswith(prefix)}
        rest = {path: value for path, value in parameters.split(model)[1].items() if path not in own}

        def tower(own, *inputs, run=run, rest=rest):
            return run(parameters.merge(structure, {**rest, **own}), *inputs)

        work = flop(tower, own, *inputs)
        candidates[name] = compiled(tower, own, *inputs, flop=work, images=chosen.batch * len(inputs))
    results = measure(candidates, repeats=options.repeats)
    per_image = {name: candidates[name].flop / candidates[name].images for name in towers}
    return chosen, {"flop_per_image": per_image, "results": results}


def main(arguments: Sequence[str] | None = None) -> int:
    return report.run("encode", benchmark, arguments, report.parser("encode", __doc__, EXAMPLES))


if __name__ == "__main__":
    sys.exit(main())
