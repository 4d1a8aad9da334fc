"""The HTML page of an evaluation: the figures, and the worst and best images with a before/after slider.

One file with its style and script inside, images next to it in `images/`; it needs no server and no network.
"""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import write_atomically
from mperceiver_jax.evaluate.metrics.scorer import METRICS
from mperceiver_jax.evaluate.protocols.protocol import Protocol
from mperceiver_jax.evaluate.protocols.tables import INPUT, value_text
from mperceiver_jax.image_encoding import encode_png
from mperceiver_jax.image_files import quantise

Shown = Mapping[str, np.ndarray | None]


def worst_and_best(
    rows: Sequence[Mapping[str, Any]], metric: str, many: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The `many` worst and best images by a metric, no image in both."""
    ranked = sorted(rows, key=lambda row: row[metric], reverse=not METRICS[metric].more_is_better)
    many = min(many, (len(ranked) + 1) // 2)
    return ranked[:many], ranked[max(many, len(ranked) - many) :][::-1]


def write_page(
    folder: Path,
    results: Mapping[str, Any],
    protocol: Protocol,
    metric: str,
    worst: Sequence[tuple[Mapping[str, Any], Shown]],
    best: Sequence[tuple[Mapping[str, Any], Shown]],
) -> Path:
    """Writes `index.html` and its images; returns the page's path.

    Args:
        metric: by which the images were ranked.
        worst: (row, {'input', 'output', 'truth': float (h, w, 3) in [0, 1] or None}), worst first.
        best: the same, best first.
    """
    sections = []
    for heading, entries in (("Worst images", worst), ("Best images", best)):
        figures = "\n".join(
            _figure(folder, row, shown, results["title"], number) for number, (row, shown) in enumerate(entries)
        )
        if figures:
            sections.append(f"<h2>{heading} by {html.escape(METRICS[metric].heading)}</h2>\n{figures}")
    template = (files("mperceiver_jax.evaluate.protocols") / "page.html").read_text()
    page = template
    for name, value in {
        "TITLE": html.escape(f"{results['title']}: {protocol.title}"),
        "WARNINGS": _list("Not comparable with published figures as it stands:", results["warnings"]),
        "TABLE": _table(results, protocol),
        "SCORING": html.escape(results["protocol"]["scoring"]),
        "FIGURES": "\n".join(sections),
        "TRAPS": _list("", protocol.traps),
    }.items():
        page = page.replace(f"<!--{name}-->", value)
    path = folder / "index.html"
    write_atomically(path, page.encode())
    return path


def _figure(folder: Path, row: Mapping[str, Any], shown: Shown, title: str, number: int) -> str:
    """One image with its slider."""
    names = {"input": INPUT, "output": title, "truth": "truth"}
    sources = {}
    for side, image in shown.items():
        if image is not None:
            # Names of images may hold anything; a hash keeps them apart in the file system.
            key = hashlib.sha256(f"{row['set']}/{row['name']}".encode()).hexdigest()[:12]
            file = folder / "images" / f"{key}-{side}.png"
            write_atomically(file, encode_png(quantise(image)))
            sources[side] = {"label": names[side], "file": f"images/{file.name}"}
    left = "input" if "input" in sources else "truth"
    metrics = [m for m in METRICS if m in row]
    values = ", ".join(
        f"{METRICS[m].heading} {value_text(row[m], m)}"
        + (f" (input {value_text(row['input_' + m], m)})" if "input_" + m in row else "")
        for m in metrics
    )
    data = html.escape(json.dumps(sources), quote=True)
    caption = html.escape(f"{row['set']}: {row['name']}, {row['width']}x{row['height']}. {values}")
    return (
        f'<figure class="compare" data-sources="{data}" data-left="{left}" data-right="output">\n'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(results: Mapping[str, Any], protocol: Protocol) -> str:
    columns = [c for c in protocol.columns if c in results["sets"] or c in results["averages"]]
    both = {**results["sets"], **results["averages"]}
    lines = ["<tr><th></th>" + "".join(f"<th>{html.escape(c)}</th>" for c in columns) + "</tr>"]
    for metric in results["metrics"]:
        for side, name in (("output", results["title"]), ("input", INPUT)):
            values = [both[c].get(side, {}).get(metric) for c in columns]
            if any(value is not None for value in values):
                cells = "".join(f"<td>{value_text(value, metric)}</td>" for value in values)
                lines.append(f"<tr><th>{html.escape(f'{METRICS[metric].heading}, {name}')}</th>{cells}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _list(heading: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    body = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return (f"<p><strong>{html.escape(heading)}</strong></p>" if heading else "") + f"<ul>{body}</ul>"
