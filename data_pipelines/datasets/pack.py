"""From a checked tree to shards: many threads read and decode, one writes, and an interruption costs a shard.

Shards grow in a folder next to the output (`OUTPUT.partial`), which takes the output's name when everything
is in it. Started again after an interruption, shards whose source has not changed are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data_pipelines.datasets.layouts import Layout
from data_pipelines.datasets.records import Pair, Record, UnusablePair, read_pair
from data_pipelines.datasets.shards import (
    FORMAT,
    MANIFEST,
    Shard,
    shard_name,
    split_summary,
    write_json,
    write_shard,
)
from data_pipelines.datasets.splits import Fault, Found
from data_pipelines.datasets.tree import Tree

SHARD_MEGABYTES = 256

_T = TypeVar("_T")
_R = TypeVar("_R")


class Refused(ValueError):
    """The tree has faults and --strict was given; the message lists them."""


def check_images(found: Sequence[Found], tree: Tree, workers: int) -> list[Found]:
    """Decodes every image and writes nothing: pairs that cannot be used become faults."""
    checked = []
    # Only the verdict leaves the thread, never the images.
    verdict = lambda pair: outcome if isinstance(outcome := _read(pair, "", tree), tuple) else None
    with _bar("checking", sum(len(part.pairs) for part in found)) as bar:
        for part in found:
            verdicts = list(_counted(_ordered(verdict, part.pairs, workers), bar))
            usable = tuple(pair for pair, fault in zip(part.pairs, verdicts, strict=True) if fault is None)
            faults = tuple(Fault(*fault) for fault in verdicts if fault is not None)
            checked.append(dataclasses.replace(part, pairs=usable, faults=part.faults + faults))
    return checked


def prepare(
    layout: Layout,
    task: str,
    found: Sequence[Found],
    tree: Tree,
    output: str | os.PathLike[str],
    *,
    strict: bool = False,
    workers: int = 0,
    shard_megabytes: float = SHARD_MEGABYTES,
) -> dict[str, Any]:
    """Writes the pairs of the splits found as shards with a manifest.

    Args:
      strict: an unreadable image or a pair of two sizes refuses the whole.
      workers: threads; 0: one for each core.

    Returns the manifest. Raises FileExistsError where the output is, Refused for faults with `strict`, ValueError
    where no image can be used.
    """
    target = Path(output)
    if target.exists():
        raise FileExistsError(f"{target} exists already; take another --output, or delete it first")
    refuse_within(target, tree)
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    splits: dict[str, Any] = {}
    refused: list[str] = []
    with _bar(layout.name, sum(len(part.pairs) for part in found)) as bar:
        for part in found:
            if not part.pairs:
                continue
            shards = _write_split(part, task, tree, partial, workers or os.cpu_count() or 1, shard_megabytes, bar)
            skipped = [fault for shard in shards for fault in shard.skipped]
            refused += [f"  {kind}: {name}: {what}" for kind, name, what in skipped]
            structural = [(fault.kind, fault.name, fault.what) for fault in part.faults if fault.kind != "count"]
            splits[part.split.name] = split_summary(shards, [*structural, *skipped])
    if strict and refused:
        raise Refused("\n".join([f"--strict: {len(refused)} images cannot be used", *refused]))
    if not any(split["records"] for split in splits.values()):
        shutil.rmtree(partial)
        raise ValueError("\n".join(["none of the images can be used, nothing was written", *refused[:20]]))
    manifest = {
        "format": FORMAT,
        "name": layout.name,
        "task": task,
        "licence": layout.licence,
        "home": layout.home,
        "tool": f"data_pipelines.prepare {tool_version()}",
        "splits": splits,
    }
    written = {shard["file"] for split in splits.values() for shard in split["shards"]}
    for path in partial.iterdir():  # notes, and shards of an earlier attempt that was cut otherwise
        if path.name not in written:
            path.unlink()
    write_json(partial / MANIFEST, manifest)
    os.rename(partial, target)
    return manifest


def refuse_within(output: Path, tree: Tree) -> None:
    """Raises ValueError for an output within the source."""
    if output.resolve().is_relative_to(tree.source.resolve()):
        raise ValueError(f"the output {output} lies within the source {tree.source}, which is never written")


def tool_version() -> str:
    try:
        return importlib.metadata.version("mperceiver-jax")
    except importlib.metadata.PackageNotFoundError:
        return "of an uninstalled source tree"


def free_space_problem(found: Sequence[Found], output: str | os.PathLike[str]) -> str | None:
    """A sentence where the output's disk has less room than the images of the source take; None where not."""
    folder = Path(output).absolute().parent
    while not folder.exists():
        folder = folder.parent
    needed = sum(p.size() for part in found for pair in part.pairs for p in (pair.lq, pair.gt) if p)
    free = shutil.disk_usage(folder).free
    return f"{needed / 1e9:.1f} GB are needed at {folder}, {free / 1e9:.1f} GB are free" if needed > free else None


def _write_split(
    part: Found, task: str, tree: Tree, folder: Path, workers: int, shard_megabytes: float, bar: tqdm
) -> list[Shard]:
    per_shard = _pairs_per_shard(part.pairs, shard_megabytes)
    count = math.ceil(len(part.pairs) / per_shard)
    shards = []
    for index in range(count):
        pairs = part.pairs[index * per_shard : (index + 1) * per_shard]
        file = shard_name(part.split.name, index, count)
        source = "\n".join([FORMAT, task, *(pair.fingerprint() for pair in pairs)])
        source = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()
        shard = Shard.finished(folder, file, source)
        if shard is None:
            shard = write_shard(folder, file, _counted(read_records(pairs, task, tree, workers), bar), source)
        else:
            bar.update(len(pairs))
        shards.append(shard)
    return shards


def read_records(
    pairs: Iterable[Pair], task: str, tree: Tree, workers: int = 0
) -> Iterator[Record | tuple[str, str, str]]:
    """Records in the order of the pairs, read by many threads; (kind, name, what) for pairs that are no use."""
    return _ordered(lambda pair: _read(pair, task, tree), pairs, workers or os.cpu_count() or 1)


def _read(pair: Pair, task: str, tree: Tree) -> Record | tuple[str, str, str]:
    try:
        return read_pair(pair, task)
    except UnusablePair as error:
        # Names that are not UTF-8 cannot be printed or stored as they are.
        name = os.path.relpath(error.name, tree.source).encode(errors="backslashreplace").decode()
        return error.kind, name, error.what


def _pairs_per_shard(pairs: Sequence[Pair], megabytes: float) -> int:
    """By the size of some pairs: the cut depends on the source only, so that a restart finds it again."""
    sample = pairs[:: max(1, len(pairs) // 64)]
    total = sum(image.size() for pair in sample for image in (pair.lq, pair.gt) if image)
    return max(1, int(megabytes * 1e6 / max(1.0, total / len(sample))))


def _ordered(work: Callable[[_T], _R], items: Iterable[_T], workers: int) -> Iterator[_R]:
    """`map` over threads, in order, with no more than two results a worker waiting: memory stays constant."""
    waiting: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _counted(results: Iterable[_R], bar: tqdm) -> Iterator[_R]:
    for result in results:
        yield result
        bar.update()


def _bar(label: str, total: int) -> tqdm:
    # A terminal gets a bar, a log a line now and then.
    every = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=label, unit=" pairs", dynamic_ncols=True, mininterval=every)
