"""The evaluation command: figures under a stated protocol. `python -m mperceiver_jax.evaluate --help`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.evaluate.protocols.protocol import Protocol, describe, load_protocol, protocol_names

if TYPE_CHECKING:
    from mperceiver_jax.evaluate.metrics.scorer import Scorer
    from mperceiver_jax.evaluate.protocols.runner import Subject

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

exit status: 0 measured; 1 something could not be read, restored or measured; 2 nothing was begun, the message says why.
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
    try:
        print(_evaluate(options, protocol, folders))
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except SetupError as error:
        return _fail(error.args[0], 2)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return _fail(error, 1)
    return 0


class SetupError(Exception):
    """Something is wrong with what was asked for; nothing was measured."""


def _fail(error: Exception, status: int) -> int:
    print(f"evaluate: {error}", file=sys.stderr)
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


class Plan(NamedTuple):
    """What an evaluation needs, checked before anything is measured.

    Attributes:
        images: that are measured.
        scorer: measures a restored image.
        extractor: features for metrics of whole sets; None where there are none.
        subject: what is evaluated.
        compared: earlier evaluations for the tables.
        settings: of metrics, which earlier results must share.
        part: (index, number of parts); None for all.
    """

    images: Sequence[Any]
    warnings: Sequence[str]
    scorer: "Scorer"
    extractor: Any
    subject: "Subject"
    compared: Sequence[Any]
    settings: dict[str, str]
    batch_size: int
    part: tuple[int, int] | None


def _evaluate(options: argparse.Namespace, protocol: Protocol, folders: Mapping[str, Any]) -> str:
    """Everything after the first checks; returns what to tell the user."""
    # Not before the flags are known to be in order: JAX takes seconds to start.
    from mperceiver_jax.evaluate.protocols import runner, tables
    from mperceiver_jax.evaluate.protocols.pair import list_hash
    from mperceiver_jax.evaluate.protocols.results_log import EvaluationMismatch

    source = Path(options.outputs or options.checkpoint)
    title = options.title or source.resolve().name
    output = options.output or Path("evaluations") / f"{protocol.name}-{title.replace('/', '-')}"
    try:
        plan = _plan(options, protocol, folders, title, output)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SetupError(error) from error
    try:
        rows, sets = runner.evaluate(
            plan.subject,
            protocol,
            plan.images,
            plan.scorer,
            output,
            batch_size=plan.batch_size,
            extractor=plan.extractor,
            settings=plan.settings,
            part=plan.part,
        )
    except EvaluationMismatch as error:
        raise SetupError(error) from error
    if plan.part is not None:
        return f"part {options.part} of {title}: {len(rows)} images; when all are done, give the command without --part"
    results = tables.summarise(
        rows,
        sets,
        protocol,
        title=title,
        identity=plan.subject.identity | plan.settings,
        images=list_hash(plan.images),
        warnings=plan.warnings,
    )
    tables.write_tables(output, results, rows, protocol, plan.compared)
    lines = [f"{title}, {protocol.name}, {len(rows)} images: {_in_short(results, protocol)}"]
    if page := _page(options.show, protocol, plan, output, results, rows):
        lines.append(f"images: {page}")
    return "\n".join([*lines, f"tables: {output / 'report.md'}"])


def _plan(
    options: argparse.Namespace, protocol: Protocol, folders: Mapping[str, Any], title: str, output: Path
) -> Plan:
    """Finds the images and opens the model; raises OSError, ValueError, RuntimeError, ImportError."""
    from mperceiver_jax.distributed.sharding import make_mesh
    from mperceiver_jax.evaluate import subjects
    from mperceiver_jax.evaluate.metrics import fid_kid
    from mperceiver_jax.evaluate.metrics.scorer import SET_METRICS, Scorer
    from mperceiver_jax.evaluate.protocols import find_pairs, tables
    from mperceiver_jax.evaluate.protocols.pair import list_hash
    from mperceiver_jax.evaluate.protocols.results_log import ResultsLog

    split = lambda text: [part.strip() for part in text.split(",") if part.strip()] if text else []
    part = _part(options.part)
    images, warnings = find_pairs.find_pairs(
        protocol,
        options.data or Path(),
        sets=split(options.sets),
        folders=folders,
        outputs=options.outputs,
        named=options.outputs_named,
        partial=options.partial,
    )
    mesh = make_mesh()
    metrics = split(options.metrics) or protocol.preprocessing.metrics
    scorer = Scorer(metrics, protocol.preprocessing, mesh, options.niqe_model)
    of_sets = any(name in scorer.metrics for name in SET_METRICS)
    if of_sets and not options.features:
        raise ValueError("fid and kid need --features=NET; no package ships the Inception network, see --help")
    extractor = fid_kid.feature_extractor(options.features) if of_sets else None
    # Images of a batch are measured by as many threads.
    batch_size = options.batch_size or (mesh.size if options.checkpoint else max(mesh.size, 4))
    subject = subjects.subject(options, title, images, mesh, batch_size)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.restart:
        ResultsLog.forget(output, f"{part[0]}-of-{part[1]}" if part else "")
    compared = [tables.read_comparison(folder, protocol, list_hash(images)) for folder in options.compare]
    settings = {"features": options.features} if of_sets else {}
    if options.niqe_model and "niqe" in scorer.metrics:
        settings["niqe_model"] = str(options.niqe_model)
    return Plan(images, warnings, scorer, extractor, subject, compared, settings, batch_size, part)


def _page(
    count: int,
    protocol: Protocol,
    plan: Plan,
    output: Path,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> Path | None:
    """Writes the page of the worst and the best images; None where none are asked for or could be ranked."""
    from mperceiver_jax.evaluate.metrics.scorer import SET_METRICS
    from mperceiver_jax.evaluate.protocols import html_page, runner
    from mperceiver_jax.evaluate.protocols.reader import NoiseStream, read_pair

    ranked_by = next((name for name in plan.scorer.metrics if name not in SET_METRICS), None)
    if ranked_by is None or count <= 0:
        return None
    stream = NoiseStream(protocol.noise_seed, plan.images)
    by_key = {(image.set, image.name): image for image in plan.images}

    def shown(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        image = by_key[row["set"], row["name"]]
        made = replace(image, output=runner.output_file(image, output))
        degraded, clean, restored = read_pair(made, protocol.preprocessing, stream)
        return row, {"input": degraded, "output": restored, "truth": clean}

    worst, best = html_page.worst_and_best(rows, ranked_by, count)
    return html_page.write_page(
        output, results, protocol, ranked_by, [shown(row) for row in worst], [shown(row) for row in best]
    )


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise SetupError(ValueError(f"--part={text}: give I/N with I from 0 to N - 1"))
    return int(index), int(count)


def _in_short(results: Mapping[str, Any], protocol: Protocol) -> str:
    from mperceiver_jax.evaluate.metrics.scorer import METRICS
    from mperceiver_jax.evaluate.protocols.tables import value_text

    both = {**results["sets"], **results["averages"]}
    last = [name for name in protocol.columns if name in both][-1]
    values = [f"{METRICS[name].heading} {value_text(value, name)}" for name, value in both[last]["output"].items()]
    return f"{last}: {', '.join(values)}"


if __name__ == "__main__":
    sys.exit(main())
