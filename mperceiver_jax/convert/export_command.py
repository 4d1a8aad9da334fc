"""write trained weights for PyTorch: the public release's file, diffusers' directories, or one file

examples:
  what `make run` trained, for diffusers and transformers
    python -m mperceiver_jax.convert export runs/small --output=exported --format=diffusers
  one file with the public release's keys, in half precision
    python -m mperceiver_jax.convert export DIR --output=mperceiver.safetensors --format=release --dtype=float16
  published pretrained weights, as imported, for diffusers and transformers
    python -m mperceiver_jax.convert export pretrained --output=exported --format=diffusers --dtype=bfloat16
  the last parameters instead of their moving averages
    python -m mperceiver_jax.convert export DIR --output=last.safetensors --format=safetensors --weights=last
  a trained PromptIR for its own PyTorch code, in the container of its release
    python -m mperceiver_jax.convert export runs/promptir_small --output=promptir.ckpt --format=release

formats:
  release      exactly the keys and shapes of the public release, which loads it strictly. The release has no
               detail refinement; NAME.drm.safetensors next to it holds ours. What the model does not run and
               nothing gave has placeholders there, and is left out of the other formats.
               Of restorers by regression: the release's keys, dead tensors and buffers included, in its container
               (.ckpt, .pkl, .pth) or without one (.safetensors); NAME.classifier.* where there is a classifier.
  diffusers    unet/, vae/ and scheduler/ for diffusers' from_pretrained, text_encoder/ and image_encoder/ for
               that of transformers, everything else in adapters.safetensors, described in adapters.json.
  safetensors  one file with everything: the release's names, and drm.* for the detail refinement.
"""

import argparse
import math
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from data_pipelines.messages import print_line, shorten_list
from mperceiver_jax.checkpoints.initial_params import Which
from mperceiver_jax.convert.export import DType, Format, export
from mperceiver_jax.convert.model_config import add_config_argument
from mperceiver_jax.convert.open_weights import Weights, open_weights
from mperceiver_jax.convert.restorer_checkpoints import export_regression, kept_aside
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="workdir of a training run, or a directory of pretrained weights"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help="file to write, or for diffusers the directory; must not exist yet",
    )
    parser.add_argument("--format", required=True, choices=get_args(Format), help="see below")
    parser.add_argument(
        "--dtype",
        choices=get_args(DType),
        default="float32",
        help="numbers are rounded to the nearest; one too large for the dtype is an error (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Which),
        help="of a training run: the last parameters, or their moving averages (default: what restoring uses, the "
        "averages of the stages that keep one)",
    )
    parser.add_argument(
        "--pretrained",
        type=Path,
        metavar="PATH",
        help="the published weights that the training started from, if they have moved since",
    )
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Exports; the exceptions are those of `open_weights` and `export`."""
    output = arguments.output
    if output.exists():
        raise FileExistsError(f"{output} exists already; move it away, or name another --output")
    weights = open_weights(
        arguments.source, arguments.weights, arguments.pretrained, arguments.config, arguments.overrides
    )
    if isinstance(weights.model, RegressionModel):
        _export_regression(arguments, weights)
        return
    if arguments.format != "diffusers" and output.suffix != ".safetensors":
        raise ValueError(f"--output={output}: a file of this format must be called NAME.safetensors")
    # Only the format `release` must be complete; placeholders are left out of every other format.
    values = weights.values if arguments.format == "release" else weights.given
    _announce(weights, values)
    with progress_bar("exporting", len(values)) as bar:
        paths = export(weights.model, values, output, arguments.format, arguments.dtype, lambda: bar.update(1))
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            print_line(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")


def _announce(weights: Weights, values: Collection[str]) -> None:
    sizes = {path: math.prod(v.get_value().shape) for path, v in parameters.declared(weights.model).items()}
    print_line(f"{weights.origin}: {sum(sizes[path] for path in values):,} parameters")
    if held := weights.placeholders.intersection(values):
        numbers = sum(sizes[path] for path in held)
        reason = "the model does not use them and the pretrained weights lack them"
        print_line(f"  note: {numbers:,} of them are placeholders, since {reason}: {shorten_list(sorted(held), 3)}")
    for note in weights.notes:
        print_line(f"  {note}")


def _export_regression(arguments: argparse.Namespace, weights: Weights) -> None:
    if arguments.format == "diffusers":
        raise ValueError("--format=diffusers: for MPerceiver only; restorers by regression take release")
    if arguments.format == "safetensors" and arguments.output.suffix != ".safetensors":
        raise ValueError(f"--output={arguments.output}: a file of this format must be called NAME.safetensors")
    _announce(weights, weights.values)
    assert isinstance(weights.model, RegressionModel)
    values, averages = weights.values, None
    # A container with a place for both gets both, unless one was asked for.
    if arguments.weights is None and weights.averaged:
        values, averages = open_weights(arguments.source, "last").values, weights.values
        if not weights.model.config.family.startswith("mioir_") or arguments.output.suffix == ".safetensors":
            values, averages = weights.values, None
    with progress_bar("exporting", len(values)) as bar:
        paths = export_regression(
            weights.model,
            values,
            arguments.output,
            arguments.dtype,
            averages,
            done=lambda count: bar.update(count),
            aside=kept_aside(arguments.source),
        )
    for path in paths:
        print_line(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
