"""What a mixture of sources amounts to: how often each image is seen in an epoch, who fills a batch.

    python -m data_pipelines.prepare plan promptir --batch-size=32
    python -m data_pipelines.prepare plan denoise=/data/wed*9 derain=/data/rain100l:train*120 dehaze=72135
    python -m data_pipelines.prepare plan five-task --mixing=temperature --temperature=2

A task's source is what `data.pairs.TASK.source` takes, or a number of images. An epoch is every image
as often as it is repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.messages import print_line
from data_pipelines.mixture import MIXINGS, TaskMixture, mixture_weights
from data_pipelines.sources.spec import open_source, parse_source

# Images x repeats as the papers' code has them. PromptIR: three noise lists (sigma 15, 25, 50), each x3.
RECIPES: dict[str, dict[str, str]] = {
    "promptir": {"denoise": "5144*9", "derain": "200*120", "dehaze": "72135"},
    "am-promptir": {"denoise": "3126*9", "derain": "200*120", "dehaze": "29403"},
    "pip": {
        "denoise": "5144*9",
        "derain": "200*120",
        "dehaze": "72135",
        "deblur_motion": "2103*5",
        "lowlight": "485*20",
    },
    "five-task": {  # IDR, MaskDCPT
        "dehaze": "72135",
        "derain": "200*300",
        "denoise": "5144*15",
        "deblur_motion": "2103*5",
        "lowlight": "485*60",
    },
}


@dataclass(frozen=True)
class Part:
    """One source of a task: images, and how often an epoch of the task repeats them."""

    task: str
    source: str
    images: int
    repeat: int


def plan(parts: Sequence[Part], batch_size: int, mixing: str, temperature: float = 1.0) -> str:
    """A table of the mixture; ValueError as from `mixture_weights` and `TaskMixture`."""
    lengths: dict[str, int] = {}
    for part in parts:
        lengths[part.task] = lengths.get(part.task, 0) + part.images * part.repeat
    weights = mixture_weights(lengths, mixing, temperature, batch_size=batch_size)
    mixture = TaskMixture(list(weights.values()), batch_size)
    shares = dict(zip(weights, mixture.shares, strict=True))
    epoch = sum(lengths.values())
    rows = [("task", "source", "images", "repeats", "of a batch", "share", "each seen per epoch")]
    for part in parts:
        share = float(shares[part.task])
        of_batch = share * batch_size
        seen = share * epoch / lengths[part.task] * part.repeat
        rows.append(
            (
                part.task,
                part.source,
                str(part.images),
                f"x{part.repeat}",
                f"{of_batch:.3g}",
                f"{share:.1%}",
                f"{seen:.3g}",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"an epoch: {epoch} examples, {epoch / batch_size:.0f} batches of {batch_size} ({mixing})")
    return "\n".join(lines)


def parts_of(tasks: Mapping[str, str]) -> list[Part]:
    """Task -> source (or number) strings as parts; opens the sources to count them."""
    parts = []
    for task, text in tasks.items():
        for name, repeat in parse_source(text):
            images = int(name) if name.isdecimal() else len(open_source(name))
            if not images:
                raise ValueError(f"{task}: {name} has no images")
            parts.append(Part(task, "" if name.isdecimal() else name, images, repeat))
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m data_pipelines.prepare plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(RECIPES)
    parser.add_argument("tasks", nargs="+", help=f"TASK=SOURCE[*REPEATS], or a published recipe: {names}")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mixing", choices=MIXINGS, default="proportional")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 1: rare tasks come more often")
    options = parser.parse_args(arguments)
    try:
        tasks: dict[str, str] = {}
        for item in options.tasks:
            task, equals, source = item.partition("=")
            if not equals and item not in RECIPES:
                raise ValueError(f"{item!r} is no recipe ({names}); a task is written TASK=SOURCE")
            tasks |= {task: source} if equals else RECIPES[item]
        print(plan(parts_of(tasks), options.batch_size, options.mixing, options.temperature))
    except (ValueError, OSError) as error:
        print_line(f"error: {error}", error=True)
        raise SystemExit(2) from None
