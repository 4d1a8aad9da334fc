"""Reports of a run: `report.json` for programs, `report.md` to read, and sheets of sample images.

Everything here is a pure function of a plain dict. Its entries, all optional:

    title       str
    stages      [{'name': str, ...numbers such as steps, first_loss, last_loss, seconds, trained_parameters}]
    tasks       {task: {'images': int, 'degraded': {metric: value}, 'restored': {metric: value}}}; with 'clean': True
                for images that need no restoration: they are no part of means and comparisons
    weight_kinds  {which of the trained parameters: {metric: mean over the tasks}}; `tasks` are of the first
    adaptation  {'task': name, 'pairs': count, 'mixture': {task: probability}, 'tasks': {task: {'degraded',
                'zero_shot' and 'few_shot': {metric: value}}}}
    predictor   {'accuracy': float in [0, 1], 'classes': [str], 'confusion': [[count]], a row per true class}
    parameters  {part: count}
    seconds     {phase: seconds}
    device      str
    versions    {package: version}
    notes       [str]

Other entries go to the JSON file only.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.files import write_atomically
from mperceiver_jax.image_encoding import encode_png
from mperceiver_jax.image_files import quantise

# Per metric: heading, decimals shown, and whether more is better. A difference that
# rounds to zero at these decimals is called unchanged.
METRICS: dict[str, tuple[str, int, bool]] = {
    "psnr": ("PSNR (dB)", 2, True),
    "ssim": ("SSIM", 4, True),
    "lpips": ("LPIPS", 4, False),
}


def write_report(results: Mapping[str, Any], folder: str | Path) -> tuple[Path, Path]:
    """Writes `report.json` and `report.md` into `folder`, each atomically; returns their paths."""
    as_json, as_markdown = Path(folder) / "report.json", Path(folder) / "report.md"
    write_atomically(as_json, to_json(results).encode())
    write_atomically(as_markdown, to_markdown(results).encode())
    return as_json, as_markdown


def to_json(results: Mapping[str, Any]) -> str:
    """Strict JSON: numpy and jax numbers and arrays become plain ones, NaN and infinities null."""
    return json.dumps(_plain(results), indent=2, allow_nan=False) + "\n"


def to_markdown(results: Mapping[str, Any]) -> str:
    """The report as tables, with one sentence per task on what got better and what worse."""
    results = _plain(results, infinite=True)
    parts = [f"# {results.get('title', 'Report')}"]
    sections: dict[str, tuple[str, Callable[[Any], str]]] = {
        "tasks": ("Restoration", _tasks),
        "weight_kinds": ("Averages and last parameters", _weight_kinds),
        "adaptation": ("Zero-shot and few-shot", _adaptation),
        "predictor": ("Degradation predictor", _predictor),
        "stages": ("Training", _stages),
        "parameters": ("Parameters", lambda counts: _pairs(("part", "parameters"), counts, 0)),
        "seconds": ("Time", lambda times: _pairs(("phase", "seconds"), times, 1)),
        "notes": ("Notes", lambda notes: "\n".join(f"- {note}" for note in notes)),
    }
    for key, (heading, body) in sections.items():
        if results.get(key):
            parts += [f"## {heading}", body(results[key])]
    made_with = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    if results.get("device") or made_with:
        device = f"Device: {results['device']}." if results.get("device") else ""
        versions = f"Versions: {made_with}." if made_with else ""
        parts += ["## Made with", f"{device} {versions}".strip()]
    return "\n\n".join(parts) + "\n"


def verdict(degraded: Mapping[str, float | None], restored: Mapping[str, float | None]) -> str:
    """What restoration changed, e.g. 'better in PSNR (+1.20 dB); worse in SSIM (-0.0100)'."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "unchanged": [], "not measured": []}
    for metric in _metrics_of([degraded, restored]):
        heading, decimals, more_is_better = METRICS[metric]
        name = heading.split(" ")[0]
        before, after = degraded.get(metric), restored.get(metric)
        if not _finite(before) or not _finite(after):
            found["not measured"].append(name)
            continue
        change = round(after - before, decimals)
        unit = " dB" if metric == "psnr" else ""
        kind = "unchanged" if change == 0 else "better" if (change > 0) == more_is_better else "worse"
        found[kind].append(name if change == 0 else f"{name} ({change:+.{decimals}f}{unit})")
    return "; ".join(f"{kind} in {' and '.join(names)}" for kind, names in found.items() if names)


def sample_sheet(
    rows: Iterable[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]],
    path: str | Path,
    titles: Sequence[str] = ("degraded", "restored", "truth"),
) -> None:
    """Writes a PNG with one row per example: degraded, restored and, where there is one, the truth.

    Images are shown at their own size, in columns as wide as the widest.

    Args:
        rows: (title, degraded, restored, truth or None), images float (h, w, 3) in [0, 1]; clipped.
        path: where to; written atomically.

    Raises:
        ValueError: no rows, or an image that is not (h, w, 3) or not finite; names the row.
    """
    prepared = []
    for title, *images in rows:
        for image in images:
            if image is not None and (np.ndim(image) != 3 or np.shape(image)[2] != 3):
                raise ValueError(f"sample sheet, {title!r}: images must be (h, w, 3), got {np.shape(image)}")
        try:
            prepared.append((title, [None if x is None else quantise(np.asarray(x)) for x in images]))
        except ValueError as error:
            raise ValueError(f"sample sheet, {title!r}: {error}") from None
    if not prepared:
        raise ValueError(f"sample sheet {path}: there is nothing to show")
    gap, line = 6, 16
    shown = [image for _, images in prepared for image in images if image is not None]
    width = max(max(image.shape[1] for image in shown), 64)
    heights = [max(image.shape[0] for image in images if image is not None) for _, images in prepared]
    size = (3 * width + 4 * gap, line + sum(line + height + gap for height in heights) + gap)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap), 2), title, fill="black", font=font)
    top = line
    for (title, images), height in zip(prepared, heights, strict=True):
        draw.text((gap, top + 2), title, fill="black", font=font)
        for column, image in enumerate(images):
            if image is not None:
                sheet.paste(Image.fromarray(image), (gap + column * (width + gap), top + line))
        top += line + height + gap
    write_atomically(path, encode_png(np.asarray(sheet)))


def _tasks(tasks: Mapping[str, Any]) -> str:
    values = [task[side] for task in tasks.values() for side in ("degraded", "restored")]
    metrics = _metrics_of(values)
    header = ["task", "images"]
    for metric in metrics:
        header += [f"{METRICS[metric][0]}, degraded", "restored", "change"]
    rows = []
    for name, task in tasks.items():
        changes = _changes(task["degraded"], task["restored"], metrics)
        rows.append([name, _number(task.get("images"), 0), *changes])
    # A mean needs both values; tasks that lack one are left out of both sides, and counted.
    mean: dict[str, dict[str, float]] = {"degraded": {}, "restored": {}}
    remarks = []
    compared = {name: task for name, task in tasks.items() if not task.get("clean")}
    for metric in metrics:
        pairs = [(task["degraded"].get(metric), task["restored"].get(metric)) for task in compared.values()]
        complete = [pair for pair in pairs if _finite(pair[0]) and _finite(pair[1])]
        if complete:
            mean["degraded"][metric], mean["restored"][metric] = np.mean(complete, 0).tolist()
        if len(complete) < len(pairs):
            name = METRICS[metric][0]
            remarks.append(f"The mean of {name} is over {len(complete)} of {len(pairs)} tasks.")
    if len(compared) > 1:
        rows.append(["**mean**", "", *_changes(mean["degraded"], mean["restored"], metrics)])
    sentences = [f"- {name}: {verdict(task['degraded'], task['restored'])}." for name, task in compared.items()]
    sentences += [
        f"- {name}: images that need no restoration come out at {_number(task['restored'].get('psnr'), 2)} dB; "
        "no gain is measured."
        for name, task in tasks.items()
        if name not in compared
    ]
    if len(compared) > 1:
        summary = verdict(mean["degraded"], mean["restored"]) or "not measured"
        sentences.append(f"- Mean over the tasks (unweighted): {summary}.")
    worse = [n for n, task in compared.items() if "worse" in verdict(task["degraded"], task["restored"])]
    if worse:
        sentences.append(
            f"- **Restoration is worse than leaving the image alone**, by at least one metric, on "
            f"{len(worse)} of {len(compared)} tasks: {', '.join(worse)}."
        )
    return table(header, rows) + "\n\n" + "\n".join(sentences + [f"- {warning}" for warning in remarks])


def _weight_kinds(kinds: Mapping[str, Any]) -> str:
    metrics = _metrics_of(kinds.values())
    rows = [[kind, *(_number(of.get(metric), METRICS[metric][1]) for metric in metrics)] for kind, of in kinds.items()]
    text = f"All else in this report is of the {next(iter(kinds))}. Restored, mean over the tasks:"
    return text + "\n\n" + table(["weights", *(METRICS[metric][0] for metric in metrics)], rows)


def _adaptation(adaptation: Mapping[str, Any]) -> str:
    sides = ("degraded", "zero_shot", "few_shot")
    metrics = _metrics_of([task[side] for task in adaptation["tasks"].values() for side in sides if side in task])
    header = ["task"]
    for metric in metrics:
        header += [f"{METRICS[metric][0]}, degraded", "zero-shot", "few-shot", "change"]
    rows = []
    for name, task in adaptation["tasks"].items():
        row = [f"**{name}** (new)" if name == adaptation["task"] else name]
        for metric in metrics:
            degraded, before, after = (task.get(side, {}).get(metric) for side in sides)
            change = _changes({metric: before}, {metric: after}, [metric])
            row += [_number(degraded, METRICS[metric][1]), *change]
        rows.append(row)
    likeliest = sorted(adaptation["mixture"].items(), key=lambda item: -item[1])[:3]
    taken_for = ", ".join(f"{name} {100 * p:.0f} %" for name, p in likeliest)
    return f"{adaptation_in_words(adaptation)} Before, the pairs were taken for {taken_for}.\n\n{table(header, rows)}"


def adaptation_in_words(adaptation: Mapping[str, Any]) -> str:
    """One sentence on the new task: degraded, zero-shot and few-shot PSNR."""
    task = adaptation["tasks"][adaptation["task"]]
    psnr = {side: f"{values['psnr']:.2f} dB" for side, values in task.items()}
    return (
        f"{adaptation['task']}, from {adaptation['pairs']} pairs: degraded {psnr['degraded']}, zero-shot "
        f"{psnr['zero_shot']}, few-shot {psnr.get('few_shot', 'not yet')}."
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    cells = []
    for metric in metrics:
        decimals = METRICS[metric][1]
        a, b = before.get(metric), after.get(metric)
        # + 0.0: a change that rounds to nothing has no sign.
        change = f"{round(b - a, decimals) + 0.0:+.{decimals}f}" if _finite(a) and _finite(b) else "–"
        cells += [_number(a, decimals), _number(b, decimals), change]
    return cells


def _predictor(predictor: Mapping[str, Any]) -> str:
    text = []
    if _finite(predictor.get("accuracy")):
        text.append(f"Accuracy: {100 * predictor['accuracy']:.1f} %.")
    confusion = predictor.get("confusion")
    if confusion:
        classes = predictor.get("classes") or [str(i) for i in range(len(confusion))]
        rows = [[name, *(_number(n, 0) for n in row)] for name, row in zip(classes, confusion, strict=True)]
        text.append("Rows are the true class, columns the predicted one.")
        text.append(table(["true \\ predicted", *classes], rows))
    return "\n\n".join(text)


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for stage in stages for key in stage))
    rows = [[_cell(stage.get(column)) for column in columns] for stage in stages]
    return table([column.replace("_", " ") for column in columns], rows)


def _pairs(header: Sequence[str], values: Mapping[str, Any], decimals: int) -> str:
    return table(header, [[name, _number(value, decimals)] for name, value in values.items()])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    align = ["---"] + ["---:"] * (len(header) - 1)
    lines = []
    for line in [header, align, *rows]:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in line)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return _number(value, 0) if isinstance(value, int) or value is None else str(value)


def _number(value: Any, decimals: int) -> str:
    return f"{value:,.{decimals}f}" if _finite(value) else "inf" if value == math.inf else "–"


def _metrics_of(values: Iterable[Mapping[str, Any]]) -> list[str]:
    present = {key for group in values for key in group}
    unknown = sorted(present - set(METRICS))
    if unknown:
        raise ValueError(f"report: unknown metrics {unknown}; METRICS must say which direction is better")
    return [metric for metric in METRICS if metric in present]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any, infinite: bool = False) -> Any:
    """Plain Python values; NaN becomes None, and so do infinities unless `infinite` keeps them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, infinite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, infinite) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) or (infinite and math.isinf(value)) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), infinite)
    raise ValueError(f"report: cannot store {type(value).__name__} ({value!r:.80})")
