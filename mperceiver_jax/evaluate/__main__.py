"""The evaluation command: figures under a stated protocol. `python -m mperceiver_jax.evaluate --help`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mperceiver_jax.interrupts  # noqa: F401  (before the imports that take seconds)
from data_pipelines.messages import print_line
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.evaluate.protocols.protocol import Protocol, describe, load_protocol, protocol_names

EXAMPLES = """\
examples:
  what protocols there are, what they measure and their traps
    python -m mperceiver_jax.evaluate protocols
    python -m mperceiver_jax.evaluate protocols promptir-3task
  the bundled weights
    python -m mperceiver_jax.evaluate --protocol=promptir-3task --data=DIR
  a trained model
    python -m mperceiver_jax.evaluate --checkpoint=runs/small --protocol=promptir-3task --data=DIR --output=figures
  another system's images, DIR/<set>/<name of the degraded image>.png, by the same preprocessing
    python -m mperceiver_jax.evaluate --outputs=DIR --protocol=promptir-3task --data=DATA --output=peer --title=NLM
  any two folders
    python -m mperceiver_jax.evaluate --outputs=restored --protocol=folder --data=truths
    python -m mperceiver_jax.evaluate --checkpoint=runs/small --protocol=folder --set=folder=rainy,clean
  more metrics, and an earlier evaluation in the same table
    python -m mperceiver_jax.evaluate --outputs=DIR --protocol=cdd11 --data=DATA --metrics=psnr,ssim,lpips_alex,dists \\
      --compare=peer

Written to --output: images.csv (every image), report.json, report.md (tables, with published figures),
index.html (worst and best images with a slider; open it from the file system), restored/ (of a model).
An evaluation that was interrupted goes on when the same command is given again.

metrics: psnr, ssim (as the protocol says), psnr_y, ssim_y (luma), ms_ssim; lpips_alex, lpips_vgg (pip install
mperceiver-jax[lpips]); dists ([dists]); niqe (--niqe-model); fid, kid (--features).

exit status: 0 measured; 1 something could not be read, restored or measured; 2 nothing was started (see the message).
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m mperceiver_jax.evaluate",
        usage="%(prog)s [--checkpoint MODEL | --outputs DIR] --protocol NAME --data DIR [--output DIR] [options]\n"
        "       %(prog)s protocols [NAME ...]",
        description="Measure a trained model, or another system's images, under a published protocol.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("command", nargs="?", choices=["protocols"], help="print the protocols and stop")
    add("names", nargs="*", metavar="PROTOCOL", help="only these")
    what = result.add_mutually_exclusive_group()
    what.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="as in the restore command: a run's workdir, released weights or hf://OWNER/NAME (default without "
        "--outputs: the bundled weights 'base')",
    )
    what.add_argument("--outputs", type=Path, metavar="DIR", help="images that any system restored")
    add("--protocol", metavar="NAME", help=f"{', '.join(protocol_names())}, or your own .toml file")
    add("--data", type=Path, metavar="DIR", help="folder of the test sets; `protocols` shows what is looked for in it")
    add("--output", type=Path, metavar="DIR", help="results (default: evaluations/PROTOCOL-TITLE)")
    add("--title", help="in tables (default: name of the folder that is evaluated)")
    add("--sets", metavar="A,B", help="only these sets")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=[LQ,]GT",
        help="folders of a set, degraded and clean, or its published tree, in place of the protocol's; may be repeated",
    )
    add("--pairing", metavar="RULE", help="stem, prefix, or PATTERN=>REPLACEMENT from a degraded stem to a clean one")
    add(
        "--outputs-named",
        default="stem",
        metavar="RULE",
        help="from an output's stem to the degraded image's, as in --pairing: '_restored$=>' (default: the same)",
    )
    add("--partial", action="store_true", help="measure what is there; the report says what is missing")
    add("--restart", action="store_true", help="forget what was measured before")
    add("--metrics", metavar="A,B", help="in place of the protocol's")
    add("--niqe-model", type=Path, metavar="FILE", help="modelparameters.mat of NIQE's authors")
    add(
        "--features",
        metavar="NET",
        help="for fid and kid: vgg16, a TorchScript file such as inception-2015-12-05.pt, or MODULE:FUNCTION",
    )
    add(
        "--compare",
        action="append",
        default=[],
        metavar="DIR",
        help="--output of an earlier evaluation, for the tables",
    )
    add("--show", type=int, default=6, metavar="N", help="worst and best images on the page (default: %(default)s)")
    add(
        "--part",
        metavar="I/N",
        help="measure the I-th of N parts (from 0), for N processes with one --output; then once without --part",
    )
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="images of one size at a time (default: one per device; of --outputs 4 at least)",
    )
    model = result.add_argument_group("with --checkpoint")
    model.add_argument("--sampler", help="as in the restore command (default: as configured)")
    model.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: as configured)")
    model.add_argument("--seed", type=int, default=42, metavar="N", help="of the starting noise (default: %(default)s)")
    model.add_argument("--no-refine", dest="refine", action="store_false", help="without the detail refinement")
    model.add_argument("--task", metavar="NAME", help="the degradation of all images, for models that take it as input")
    model.add_argument("--weights", choices=("ema", "last"), help="as in the restore command (default: ema if kept)")
    model.add_argument("--predictor", metavar="MODEL", help="as in the restore command")
    model.add_argument("--pretrained", type=Path, metavar="PATH", help="published weights, if they have moved")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "protocols":
            print("\n\n".join(describe(load_protocol(name)) for name in options.names or protocol_names()))
            return 0
        protocol = _protocol(options)
        folders = _folders(options.set)
        if options.data is None and {one.name for one in protocol.sets} - set(folders):
            raise ValueError(f"give --data=DIR, where the sets of {protocol.name} lie (or --set for each)")
    except (OSError, ValueError) as error:
        return _fail(error, 2)
    # Not before the options are known to be in order: JAX takes seconds to start.
    from mperceiver_jax.evaluate.evaluation import SetupError, evaluate

    try:
        print_line(evaluate(options, protocol, folders))
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except SetupError as error:
        return _fail(error.args[0], 2)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return _fail(error, 1)
    return 0


def _fail(error: Exception, status: int) -> int:
    print_line(f"evaluate: {error}", error=True)
    return status


def _protocol(options: argparse.Namespace) -> Protocol:
    if options.protocol is None:
        raise ValueError(f"give --protocol, one of {', '.join(protocol_names())}")
    if options.checkpoint is None and options.outputs is None:
        options.checkpoint = DEFAULT_WEIGHTS
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, not {options.batch_size}")
    protocol = load_protocol(options.protocol)
    if options.pairing:
        protocol = replace(protocol, sets=tuple(replace(s, pairing=(options.pairing,)) for s in protocol.sets))
    return protocol


def _folders(given: Sequence[str]) -> Mapping[str, tuple[Path | None, Path]]:
    """NAME=[LQ,]GT, repeated, as {name: (lq or None, gt)}."""
    folders: dict[str, tuple[Path | None, Path]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        lq, comma, gt = value.rpartition(",")
        if not equals or not gt or (comma and not lq):
            raise ValueError(f"--set={text}: give NAME=GT or NAME=LQ,GT")
        folders[name] = (Path(lq) if lq else None, Path(gt))
    return folders


if __name__ == "__main__":
    sys.exit(main())
