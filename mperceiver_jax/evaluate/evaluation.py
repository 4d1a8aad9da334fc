"""One evaluation: the images of a protocol restored and measured, tables and a page written."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.messages import print_line
from mperceiver_jax.distributed.sharding import make_mesh
from mperceiver_jax.evaluate import subjects
from mperceiver_jax.evaluate.metrics import fid_kid
from mperceiver_jax.evaluate.metrics.scorer import METRICS, SET_METRICS, Scorer
from mperceiver_jax.evaluate.protocols import find_pairs, html_page, runner, tables
from mperceiver_jax.evaluate.protocols.pair import list_hash
from mperceiver_jax.evaluate.protocols.protocol import Protocol
from mperceiver_jax.evaluate.protocols.reader import NoiseStream, read_pair
from mperceiver_jax.evaluate.protocols.results_log import EvaluationMismatch, ResultsLog
from mperceiver_jax.evaluate.protocols.runner import Subject


class SetupError(Exception):
    """Something is wrong with what was asked for; nothing was measured."""


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
    scorer: Scorer
    extractor: Any
    subject: Subject
    compared: Sequence[Any]
    settings: dict[str, str]
    batch_size: int
    part: tuple[int, int] | None


def evaluate(options: argparse.Namespace, protocol: Protocol, folders: Mapping[str, Any]) -> str:
    """Measures what the options of the command name and writes the results; returns a summary for the user.

    Raises:
        SetupError: something is wrong with the options, and nothing was measured.
        OSError, ValueError, RuntimeError: something could not be read, restored or measured.
    """
    source = Path(options.outputs or options.checkpoint)
    title = options.title or source.resolve().name
    output = options.output or Path("evaluations") / f"{protocol.name}-{title.replace('/', '-')}"
    try:
        plan = _plan(options, protocol, folders, title, output)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SetupError(error) from error
    left_out: list[str] | None = [] if options.partial else None
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
            left_out=left_out,
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
        warnings=[*plan.warnings, *(f"left out: {sentence}" for sentence in left_out or ())],
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
        print_line(f"warning: {warning}", error=True)
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
    both = {**results["sets"], **results["averages"]}
    last = [name for name in protocol.columns if name in both][-1]
    values = [
        f"{METRICS[name].heading} {tables.value_text(value, name)}" for name, value in both[last]["output"].items()
    ]
    return f"{last}: {', '.join(values)}"
