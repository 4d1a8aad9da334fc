"""The results of an evaluation: averages, CSV, JSON, and Markdown tables with the results of others for comparison."""

import csv
import importlib.metadata
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import write_atomically
from mperceiver_jax.evaluate.metrics.scorer import METRICS
from mperceiver_jax.evaluate.protocols.protocol import Protocol
from mperceiver_jax.evaluate.report import table, to_json

PACKAGES = ("mperceiver-jax", "jax", "numpy", "scipy", "pillow")
INPUT = "degraded input"


def summarise(
    rows: Sequence[Mapping[str, Any]],
    of_sets: Mapping[str, Mapping[str, float]],
    protocol: Protocol,
    *,
    title: str,
    identity: Mapping[str, Any],
    images: str,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Averages and everything a reader needs to know what they mean.

    A set's value is the mean of its images' values; an average is the unweighted mean of its sets'
    values, and is given only when all of them were measured.

    Args:
        rows: from `runner.evaluate`.
        of_sets: from there.
        identity: what was evaluated.
        images: hash of the list of images.
        warnings: what makes figures incomparable with published ones.
    """
    sets = _means_of_sets(rows, of_sets, protocol)
    warnings = [*warnings, *_equal_images(rows, protocol)]
    measured = next(iter(sets.values()))["output"]
    return {
        "title": title,
        "protocol": {
            "name": protocol.name,
            "title": protocol.title,
            "scoring": protocol.preprocessing.describe(),
            "noise_seed": protocol.noise_seed,
            "traps": list(protocol.traps),
        },
        "evaluated": dict(identity),
        "images": {"count": len(rows), "list": images},
        "warnings": list(warnings),
        "metrics": {name: METRICS[name].definition for name in METRICS if name in measured},
        "sets": sets,
        "averages": _averages(sets, protocol),
        "published": [
            {"name": peer.name, "source": peer.source, "figures": {k: dict(v) for k, v in peer.figures.items()}}
            for peer in protocol.peers
        ],
        "sources": dict(protocol.sources or {}),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _means_of_sets(
    rows: Sequence[Mapping[str, Any]], of_sets: Mapping[str, Mapping[str, float]], protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Of every measured set its number of images, its task, and the means of outputs and degraded inputs."""
    sets: dict[str, dict[str, Any]] = {}
    for one in protocol.sets:
        of_set = [row for row in rows if row["set"] == one.name]
        if of_set:
            means = {
                side: {m: _mean([row[prefix + m] for row in of_set]) for m in METRICS if prefix + m in of_set[0]}
                for side, prefix in (("output", ""), ("input", "input_"))
            }
            means["output"] |= of_sets.get(one.name, {})
            sets[one.name] = {"images": len(of_set), "task": one.task, **means}
    return sets


def _mean(values: Sequence[float]) -> float:
    """The mean of the finite values; PSNR is infinite for equal images, which are counted (`_equal_images`)."""
    finite = [value for value in values if not math.isinf(value)]
    return float(np.mean(finite or values))


def _equal_images(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> list[str]:
    """One sentence for each set with images that equal their ground truth, which means leave out."""
    found = []
    for one in protocol.sets:
        of_set = [row for row in rows if row["set"] == one.name]
        for side, prefix in (("outputs", ""), ("degraded images", "input_")):
            equal = [row for row in of_set if any(math.isinf(row.get(prefix + m, 0.0)) for m in ("psnr", "psnr_y"))]
            if equal:
                found.append(
                    f"{one.name}: {len(equal)} of {len(of_set)} {side} equal the ground truth; PSNR is the mean of the "
                    "others"
                )
    return found


def _averages(sets: Mapping[str, Mapping[str, Any]], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """The protocol's averages, those of which every set was measured with the same metrics."""
    averages: dict[str, dict[str, Any]] = {}
    for name, members in protocol.averages.items():
        if all(member in sets for member in members):
            averages[name] = {
                side: {m: float(np.mean([sets[member][side][m] for member in members])) for m in sets[members[0]][side]}
                for side in ("output", "input")
                if all(sets[member][side].keys() == sets[members[0]][side].keys() for member in members)
            }
    return averages


def write_tables(
    folder: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], protocol: Protocol, compared: Sequence
) -> None:
    """`images.csv`, `report.json` and `report.md`, each complete or not at all."""
    write_atomically(folder / "images.csv", to_csv(rows).encode())
    write_atomically(folder / "report.json", to_json(results).encode())
    write_atomically(folder / "report.md", to_markdown(results, protocol, compared).encode())


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per image, numbers with all their digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_comparison(folder: str | Path, protocol: Protocol, images: str) -> dict[str, Any]:
    """The results of an earlier evaluation, to be shown in the same tables.

    Args:
        images: hash of the list of images that this one is of.

    Raises:
        FileNotFoundError: there is no report in that folder.
        ValueError: it was made under another protocol or of other images.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; --compare takes the --output of an earlier evaluation")
    try:
        other = json.loads(path.read_text())
        name, scoring, of = other["protocol"]["name"], other["protocol"]["scoring"], other["images"]["list"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of an evaluation ({error})") from None
    if (name, scoring) != (protocol.name, protocol.preprocessing.describe()):
        raise ValueError(f"{path} was made under another protocol, {name}")
    if of != images:
        raise ValueError(f"{path} is of other images, or of other sizes (list {of})")
    return other


def to_markdown(results: Mapping[str, Any], protocol: Protocol, compared: Sequence[Mapping[str, Any]] = ()) -> str:
    """Tables with our figures first and published ones below, then what they mean."""
    parts = [f"# {results['title']}: {protocol.title}"]
    if results["warnings"]:
        parts.append("**Not comparable with published figures as it stands:**")
        parts.append("\n".join(f"- {warning}" for warning in results["warnings"]))
    for metric in results["metrics"]:
        parts += [f"## {METRICS[metric].heading}", _metric_table(metric, results, protocol, compared)]
    shown = {peer["source"] for peer in results["published"]}
    if shown:
        sources = [f"{key}: {text}" for key, text in results["sources"].items()]
        parts.append("Published figures are quoted, not measured here. Sources: " + "; ".join(sources) + ".")
    facts = [f"- Scoring: {results['protocol']['scoring']}."]
    facts += [f"- {METRICS[m].heading}: {definition}." for m, definition in results["metrics"].items()]
    if any(one.noise is not None for one in protocol.sets):
        facts.append(f"- Noise: seed {protocol.noise_seed}, one stream, names sorted.")
    facts.append(
        f"- {results['images']['count']} images, list {results['images']['list']}: "
        + ", ".join(f"{name} {one['images']}" for name, one in results["sets"].items())
        + "."
    )
    facts += [f"- {key}: {value}" for key, value in results["evaluated"].items()]
    made_with = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts += ["## What was measured", "\n".join([*facts, f"- Made with {made_with}."])]
    parts += ["## Traps", "\n".join(f"- {trap}" for trap in protocol.traps)]
    return "\n\n".join(parts) + "\n"


def value_text(value: float | None, metric: str, most: int = 9) -> str:
    """A figure with the metric's decimals, at most so many; '–' where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return "inf" if math.isinf(value) else f"{value:.{min(METRICS[metric].decimals, most)}f}"


def _metric_table(
    metric: str, results: Mapping[str, Any], protocol: Protocol, compared: Sequence[Mapping[str, Any]]
) -> str:
    columns = [c for c in protocol.columns if c in results["sets"] or c in results["averages"]]
    rows = [(f"**{results['title']}**", "measured here", _of(results, "output", metric))]
    rows += [(other["title"], "measured here", _of(other, "output", metric)) for other in compared]
    if degraded := _of(results, "input", metric):
        rows.append((INPUT, "measured here", degraded))
    peers = [(p["name"], p["source"], p["figures"].get(metric, {})) for p in results["published"]]
    last = columns[-1]
    # Best average first; those without one last.
    sign = -1 if METRICS[metric].more_is_better else 1
    peers.sort(key=lambda peer: sign * peer[2][last] if last in peer[2] else math.inf)
    peers = [peer for peer in peers if any(column in peer[2] for column in columns)]
    # Papers print SSIM with three decimals.
    body = [
        [name, *(value_text(figures.get(c), metric, most) for c in columns), source]
        for most, group in ((9, rows), (3, peers))
        for name, source, figures in group
    ]
    return table(["system", *columns, "source"], body)


def _of(results: Mapping[str, Any], side: str, metric: str) -> dict[str, float]:
    both = {**results["sets"], **results["averages"]}
    found = {name: values.get(side, {}).get(metric) for name, values in both.items()}
    return {name: value for name, value in found.items() if value is not None}
