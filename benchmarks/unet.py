"""The plain UNet here and in PyTorch (diffusers): the same weights, size, dtype and device, in one run."""

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.flop import flop
from benchmarks.subject import Subject, random_values
from benchmarks.timing import PEAK, Candidate, compiled, matrix_product, measure
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.unet import UNet

EXAMPLES = """\
  python -m benchmarks.unet
  python -m benchmarks.unet --variant=sd21 --batch=16 --no-compile --output=unet.json
"""


def candidates(
    chosen: Subject, *, torch_too: bool = True, compile_too: bool = True
) -> tuple[dict[str, Candidate], list[str]]:
    """(what to time by name, remarks on what could not be).

    The backward pass goes to every weight. Inputs and weights are the same on both sides; that the outputs
    agree is checked first.

    Raises:
        ValueError: the two networks do not compute the same.
    """
    config = replace(chosen.model.unet, modulated=False)
    module = UNet(config)
    structure, _ = parameters.split(module)
    values = random_values(module, chosen.dtype)
    rng = np.random.default_rng(2)
    latent = rng.standard_normal((chosen.batch, *chosen.latent), np.float32)
    context = rng.standard_normal((chosen.batch, chosen.model.text.context_length, config.context_width), np.float32)
    t = np.full((chosen.batch,), 500, np.int32)
    inputs = (jnp.asarray(latent, chosen.dtype), jnp.asarray(t), jnp.asarray(context, chosen.dtype))

    def forward(values, *inputs):
        return parameters.merge(structure, values)(*inputs)

    def loss(values, *inputs):
        return jnp.square(forward(values, *inputs).astype(jnp.float32)).mean()

    backward = jax.grad(loss)
    found = {
        "jax unet forward": compiled(
            forward, values, *inputs, flop=flop(forward, values, *inputs), images=chosen.batch
        ),
        "jax unet forward+backward": compiled(
            backward, values, *inputs, flop=flop(backward, values, *inputs), images=chosen.batch
        ),
    }
    if not torch_too:
        return found, []
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        return found, [f"no comparison with PyTorch: {' and '.join(missing)} not installed"]
    from benchmarks import torch_device, torch_peer, torch_unet

    if warning := torch_device.unusable():
        return found, [warning]
    theirs = torch_unet.TorchUNet(module, config, values, (latent, t, context), chosen.compute_dtype)
    ours = np.asarray(found["jax unet forward"].run().astype(jnp.float32))
    off = np.abs(theirs.output() - ours).max() / np.abs(ours).max()
    if not off < torch_peer.TOLERANCE[chosen.compute_dtype]:
        raise ValueError(f"the UNets here and in PyTorch differ by {off:.2g} of the largest output")
    remarks = [f"outputs here and in PyTorch differ by {off:.1e} of the largest"]
    made, problem = theirs.candidates(found, compile_too)
    return found | made, remarks + ([problem] if problem else [])


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """PyTorch's time over ours: above 1 this library is faster."""
    found = {}
    for way in ("forward", "forward+backward"):
        for kind in ("eager", "compiled"):
            if (theirs := f"torch {kind} unet {way}") in results:
                quotient = results[theirs]["seconds"] / results[f"jax unet {way}"]["seconds"]
                found[f"{way}: PyTorch {kind} takes, times ours"] = quotient
    return found


def add_arguments(options: Any) -> None:
    """The switches of the comparison."""
    options.add_argument("--no-torch", dest="torch", action="store_false", help="leave PyTorch out")
    options.add_argument(
        "--no-compile", dest="compile", action="store_false", help="leave torch.compile out (compiling takes minutes)"
    )


def benchmark(options: Any) -> tuple[Subject, dict[str, Any]]:
    chosen = report.subject_of(options)
    found, notes = candidates(chosen, torch_too=options.torch, compile_too=options.compile)
    results = measure({PEAK: matrix_product(chosen.dtype)} | found, repeats=options.repeats)
    per_image = {name: candidate.flop / chosen.batch for name, candidate in found.items() if name.startswith("jax")}
    return chosen, {"flop_per_image": per_image, "results": results, "ratios": ratios(results), "notes": notes}


def main(arguments: list[str] | None = None) -> int:
    options = report.parser("unet", __doc__, EXAMPLES)
    add_arguments(options)
    return report.run("unet", benchmark, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
