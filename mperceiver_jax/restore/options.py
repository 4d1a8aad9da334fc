"""The options of the restore command."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from data_pipelines.tasks import TASKS
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.image_encoding import QUALITY
from mperceiver_jax.restore.jobs import Plan, plan

EXAMPLES = """\
examples:
  one image, with the weights of this package
    python -m mperceiver_jax.restore rainy.jpg --output=restored
  no image at hand: a photograph of this package with noise
    python -m mperceiver_jax.restore --example=denoise --output=restored --side-by-side
  one image, with the model that `make run` trained
    python -m mperceiver_jax.restore rainy.jpg --checkpoint=runs/small --output=restored
  weights of a repository of the Hugging Face hub
    python -m mperceiver_jax.restore rainy.jpg --checkpoint=hf://OWNER/NAME --output=restored
  a folder and its subfolders, with comparisons
    python -m mperceiver_jax.restore photos/ --recursive --checkpoint=DIR --output=restored --side-by-side
  a model that takes the degradation as input, and large images in tiles
    python -m mperceiver_jax.restore rain/ --checkpoint=runs/pip --output=dry --task=derain --tile=512
  the same, with the degradation from MPerceiver's predictor
    python -m mperceiver_jax.restore mixed/ --checkpoint=runs/pip --output=clean --predictor=runs/small
  half as strong against rain, and nothing else changed
    python -m mperceiver_jax.restore rainy.jpg --output=restored --only=derain --strength=0.5
  the degradations are known, and only the part that mask.png shows in white is restored
    python -m mperceiver_jax.restore old.tif --output=restored --degradations=haze=0.7,denoise=0.3 --mask=mask.png
  a folder in its own formats, first only what would be done, then for good, then what arrives later
    python -m mperceiver_jax.restore photos/ --output=restored --format=same --dry-run
    python -m mperceiver_jax.restore photos/ --output=restored --format=same --watch
  fewer steps: faster, less precise; a solver of second order loses least
    python -m mperceiver_jax.restore photos/ --checkpoint=DIR --output=quick --sampler=dpmpp_2m --steps=15

Results are named like the originals and keep their size, alpha channel, bit depth, colour profile and metadata as
far as the format does. How an image was restored is written into its XMP. Images that
cannot be read are named at the end and do not stop the others. Results that exist are kept, so that the same command
continues a call that was interrupted.

The first image of every size is compiled, which takes longest; sizes are rounded up, so images of one
camera share a program. Programs are kept in the user's cache directory for the next call; JAX_COMPILATION_CACHE_DIR=DIR
names another directory.

exit status: 0 all restored; 1 some were not; 2 nothing was started; the message says why.
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m mperceiver_jax.restore",
        description="Restore degraded images of any size with a trained model. The degradation of each "
        "image (haze, rain, blur, noise, ...) is predicted, printed, and corrected.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("inputs", nargs="*", metavar="INPUT", help="an image, or a folder of images")
    result.add_argument(
        "--example",
        choices=[task.name for task in TASKS],
        nargs="?",
        const="denoise",
        help="restore a photograph of this package that no model was trained on, degraded so (default: denoise)",
    )
    result.add_argument(
        "--checkpoint",
        default=DEFAULT_WEIGHTS,
        metavar="MODEL",
        help="workdir of a training run, a folder of released weights, weights of this package by name, or "
        "hf://OWNER/NAME on the Hugging Face hub (default: %(default)s, of this package)",
    )
    result.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results, made if need be"
    )
    result.add_argument("--recursive", action="store_true", help="search folders to any depth")
    result.add_argument(
        "--format",
        choices=("same", "png", "jpg", "webp", "tiff", "avif"),
        default="png",
        help="of the results; same: that of each original, PNG where it cannot be written. Animations keep all frames; "
        "the pages of a TIFF are written as a TIFF (default: %(default)s)",
    )
    result.add_argument(
        "--quality",
        type=int,
        default=QUALITY,
        metavar="N",
        help="1 to 100, of JPEG, WebP and AVIF; a WebP of 100 is lossless (default: %(default)s)",
    )
    result.add_argument(
        "--strength",
        type=_strength,
        default=1.0,
        metavar="S",
        help="0 leaves images as they are, 1 restores them fully; or by task, as in derain=0.5,dehaze=0.8, which "
        "counts with the probability of that degradation (default: 1)",
    )
    result.add_argument(
        "--detail",
        type=float,
        default=0.0,
        metavar="D",
        help="0 to 1: how much of the diffusion's own detail is kept against the fidelity of the refinement "
        "(default: 0)",
    )
    result.add_argument(
        "--degradations",
        type=_shares,
        default={},
        metavar="NAME=P,...",
        help="probabilities in place of the predicted ones, as in haze=0.7,denoise=0.3",
    )
    chosen = result.add_mutually_exclusive_group()
    chosen.add_argument("--only", type=_names, default=(), metavar="TASK,...", help="restore nothing but these")
    chosen.add_argument("--skip", type=_names, default=(), metavar="TASK,...", help="do not restore these")
    result.add_argument(
        "--mask", type=Path, metavar="FILE", help="a grey image of the same size: white is restored, black stays"
    )
    result.add_argument(
        "--feather",
        type=float,
        default=8.0,
        metavar="PIXELS",
        help="standard deviation by which the mask's edge is softened (default: %(default)s)",
    )
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="print for each image its size, tiles, degradations and estimated seconds; write nothing",
    )
    result.add_argument(
        "--watch", action="store_true", help="go on and restore what arrives in the folders, until Ctrl-C"
    )
    result.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="table of what was done, one row for each image (default: restored.csv in the output folder, where a "
        "folder is restored)",
    )
    result.add_argument("--overwrite", action="store_true", help="restore again what was restored already")
    result.add_argument(
        "--side-by-side",
        action="store_true",
        help="also write NAME_side_by_side.png: degraded left, restored right",
    )
    result.add_argument(
        "--sampler",
        choices=("ddim", "reference", "dpmpp_2m"),
        help="ddim: the correct schedule; reference: exactly the public release's; dpmpp_2m: DPM-Solver++, made "
        "for 10 to 25 steps (default: as configured)",
    )
    result.add_argument("--steps", type=int, metavar="N", help="steps of the sampler (default: as configured)")
    result.add_argument(
        "--seed",
        type=int,
        default=42,
        metavar="N",
        help="of the starting noise; the same seed gives the same results (default: %(default)s)",
    )
    result.add_argument(
        "--no-refine",
        dest="refine",
        action="store_false",
        help="decode without the detail refinement module",
    )
    result.add_argument(
        "--colour",
        choices=("none", "adain", "wavelet"),
        default="none",
        help="give results the colours of the original, by its statistics or its low frequencies; not for "
        "haze and low light, which are degradations of colour (default: %(default)s)",
    )
    result.add_argument(
        "--rounding",
        choices=("round", "truncate"),
        default="round",
        help="to whole levels; truncate is what the public release does (default: %(default)s)",
    )
    result.add_argument(
        "--task",
        metavar="NAME",
        help="what to restore, as in derain, for models that take the degradation as input; else it is predicted",
    )
    result.add_argument(
        "--predictor",
        metavar="MODEL",
        help="an MPerceiver as in --checkpoint, whose predictor gives such a model the degradation, in place of its "
        "own classifier",
    )
    result.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="restore in tiles of N x N pixels, for images that need more memory than there is; 0: whole images "
        "(default: tiles for large images where the model has no attention over the whole image)",
    )
    result.add_argument(
        "--overlap", type=int, default=64, metavar="N", help="pixels that tiles share (default: %(default)s)"
    )
    result.add_argument(
        "--weights",
        choices=("ema", "last"),
        help="the moving averages, or the last parameters (default: the averages of the stages that keep one)",
    )
    result.add_argument(
        "--pretrained",
        type=Path,
        metavar="PATH",
        help="the published weights that the training started from, if they have moved since",
    )
    return result


def plan_of(options: argparse.Namespace) -> Plan:
    """The images of a call and where their results go. Raises as `jobs.plan`."""
    return plan(
        options.inputs,
        options.output,
        recursive=options.recursive,
        side_by_side=options.side_by_side,
        overwrite=options.overwrite,
        kind=options.format,
    )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `RestoreSettings` that only this command sets."""
    names = ("colour", "rounding", "tile", "overlap", "strength", "detail", "degradations", "only", "skip", "feather")
    return {name: getattr(options, name) for name in names}


def as_text(options: argparse.Namespace) -> str:
    """The options that determine a result, as they are given to repeat it."""
    default = parser().parse_args(["--output=."])
    names = (
        *("sampler", "steps", "refine", "colour", "rounding", "task", "predictor", "tile", "overlap", "weights"),
        *("strength", "detail", "degradations", "only", "skip", "mask", "feather"),
    )
    words = [f"--checkpoint={options.checkpoint}", f"--seed={options.seed}"]
    for name in names:
        value = getattr(options, name)
        if value != getattr(default, name):
            words.append("--no-refine" if name == "refine" else f"--{name}={_text(value)}")
    return shlex.join(words)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={share:g}" for name, share in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _strength(text: str) -> float | dict[str, float]:
    return _shares(text) if "=" in text else _number(text)


def _shares(text: str) -> dict[str, float]:
    """`haze=0.7,denoise=0.3` as a dictionary."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or name.strip() in found:
            raise argparse.ArgumentTypeError(f"{text!r}: NAME=NUMBER is expected, separated by commas, each name once")
        found[name.strip()] = _number(value)
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is expected, not {text!r}") from None
