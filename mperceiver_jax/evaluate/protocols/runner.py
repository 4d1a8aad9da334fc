"""An evaluation from beginning to end: read, restore, measure, keep; batch after batch of pictures of one size."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.images import as_float, decode_picture
from mperceiver_jax.evaluate.metrics.fid_kid import Extractor, frechet_distance, kernel_distance
from mperceiver_jax.evaluate.metrics.scorer import OF_SETS, Scorer
from mperceiver_jax.evaluate.protocols.pair import Pair, list_hash
from mperceiver_jax.evaluate.protocols.preprocessing import measured, prepared
from mperceiver_jax.evaluate.protocols.protocol import Protocol
from mperceiver_jax.evaluate.protocols.reader import NoiseStream, read_pair, read_truth
from mperceiver_jax.evaluate.protocols.results_log import Journal
from mperceiver_jax.image_files import encode_png, quantise, write_atomically
from mperceiver_jax.progress import progress_bar

# What restores pictures of one size: list of float32 (h, w, 3) in [0, 1] -> the same, restored.
Restore = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        title: in tables.
        identity: what its pictures depend on: a folder, or checkpoint, sampler, seed.
        restore: restores pictures of one size; None where outputs are read from a folder.
    """

    title: str
    identity: dict[str, Any]
    restore: Restore | None = None


def evaluate(
    subject: Subject,
    protocol: Protocol,
    pictures: Sequence[Pair],
    scorer: Scorer,
    output: Path,
    *,
    batch_size: int = 1,
    extractor: Extractor | None = None,
    settings: dict[str, Any] | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Measures every picture that was not measured before.

    Restored pictures are written to `output/restored/<set>/<name>.png`, scored before they are rounded
    unless the protocol rounds or measures what is stored. Killed at any moment, it goes on with the same call.

    Args:
        batch_size: pictures of one size that are restored and measured at a time.
        extractor: needed for FID and KID, see `set_metrics`.
        settings: further things that figures depend on; part of the evaluation's identity.
        part: (index, count) measures only every count-th batch and no whole sets: for several processes that
            write into one folder.

    Returns:
        (a row per measured picture in the order given: `set`, `name`, `height`, `width`, `output`, the metrics, and
        `input_<metric>` where there is a degraded picture; the metrics of whole sets).

    Raises:
        ValueError: pictures that cannot be read, all named, or one that cannot be measured.
        OtherEvaluation: `output` holds the results of another one.
    """
    identity = {
        "protocol": protocol.name,
        "ruler": protocol.ruler.in_words(),
        "metrics": list(scorer.metrics),
        "pictures": list_hash(pictures),
        "count": len(pictures),
        "noise_seed": protocol.noise_seed,
        **(settings or {}),
        **subject.identity,
    }
    journal = Journal(output, identity, f"{part[0]}-of-{part[1]}" if part else "")
    stamps = {picture.key: picture.stamp() for picture in pictures}
    open_ones = [picture for picture in pictures if not _done(journal, picture, stamps, output, subject)]
    stream = NoiseStream(protocol.noise_seed, pictures)
    if part is not None:
        # Divided before what is done is left out: the parts of two processes never overlap.
        share = {pair.key for batch in list(_batches(pictures, batch_size))[part[0] :: part[1]] for pair in batch}
        pictures = [picture for picture in pictures if picture.key in share]
        open_ones = [picture for picture in open_ones if picture.key in share]
    batches = list(_batches(open_ones, batch_size))
    unreadable: list[str] = []
    with (
        ThreadPoolExecutor() as pool,
        progress_bar("evaluating", len(pictures), len(pictures) - len(open_ones)) as bar,
    ):
        read = lambda batch: [pool.submit(_read, picture, protocol, stream) for picture in batch]
        # The next batch is decoded while this one is restored and measured.
        ahead: list[list[Future]] = [read(batch) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            ahead += [read(following) for following in batches[number + 1 : number + 2]]
            readable, loaded = [], []
            for picture, future in zip(batch, ahead.pop(0), strict=True):
                try:
                    loaded.append(future.result())
                    readable.append(picture)
                except ValueError as error:
                    unreadable.append(str(error))
            if not readable:
                continue
            outputs = _outputs(subject, readable, loaded, output, protocol.ruler.levels == "stored")
            rows = _measure(pool, readable, loaded, outputs, scorer, protocol)
            journal.append({**row, "stamp": stamps[row["key"]]} for row in rows)
            bar.update(len(readable))
    if unreadable:
        raise ValueError(f"{'; '.join(unreadable)}; the others are measured, and the same command goes on")
    rows = [journal.rows[picture.key] for picture in pictures]
    found = [{k: v for k, v in row.items() if k not in ("key", "stamp")} for row in rows]
    for row, picture in zip(found, pictures, strict=True):
        row["output"] = str(output_file(picture, output).resolve())
    if part is not None:
        return found, {}
    return found, _of_sets(scorer, protocol, pictures, output, extractor, batch_size)


def output_file(picture: Pair, output: Path) -> Path:
    """The output of a picture: another system's, or what our model made of it."""
    return picture.output or output / "restored" / picture.set / f"{picture.name}.png"


def _done(journal: Journal, picture: Pair, stamps: dict, output: Path, subject: Subject) -> bool:
    kept = subject.restore is None or output_file(picture, output).is_file()
    return kept and journal.done(picture.key, stamps[picture.key])


def _batches(pictures: Sequence[Pair], size: int) -> Iterator[list[Pair]]:
    """Set by set, pictures of one size together, as many as fit."""
    for _, group in itertools.groupby(pictures, key=lambda picture: picture.set):
        sizes: dict[tuple[int, int], list[Pair]] = {}
        for picture in group:
            sizes.setdefault(picture.size, []).append(picture)
        for alike in sizes.values():
            for first in range(0, len(alike), size):
                yield alike[first : first + size]


def _read(picture: Pair, protocol: Protocol, stream: NoiseStream) -> tuple:
    try:
        return read_pair(picture, protocol.ruler, stream)
    except ValueError as error:
        raise ValueError(f"{picture.key}: {error}") from error


def _outputs(
    subject: Subject, batch: Sequence[Pair], loaded: Sequence[tuple], output: Path, as_stored: bool
) -> list[np.ndarray]:
    if subject.restore is None:
        return [made for _, _, made in loaded]
    outputs = subject.restore([degraded for degraded, _, _ in loaded])
    files = [quantise(restored) for restored in outputs]
    for picture, file in zip(batch, files, strict=True):
        write_atomically(output_file(picture, output), encode_png(file))
    return [as_float(file) for file in files] if as_stored else outputs


def _measure(
    pool: ThreadPoolExecutor,
    batch: Sequence[Pair],
    loaded: Sequence[tuple],
    outputs: Sequence[np.ndarray],
    scorer: Scorer,
    protocol: Protocol,
) -> list[dict[str, Any]]:
    see = lambda pixels: measured(pixels, protocol.ruler)
    truths = [see(clean) for _, clean, _ in loaded]
    sides: dict[str, list[np.ndarray | None]] = {
        "": [see(made) for made in outputs],
        "input_": [None if degraded is None else see(degraded) for degraded, _, _ in loaded],
    }
    rows: list[dict[str, Any]] = [
        {"key": p.key, "set": p.set, "name": p.name, "height": p.size[0], "width": p.size[1]} for p in batch
    ]
    for prefix, seen in sides.items():
        # All of one set have a degraded picture, or none has.
        if any(image is None for image in seen):
            continue
        images = [image for image in seen if image is not None]
        try:
            of_host = list(pool.map(scorer.on_host, images, truths))
            of_device = scorer.on_device(images, truths)
        except ValueError as error:
            raise ValueError(f"{batch[0].key} and others of its size: {error}") from error
        for row, *found in zip(rows, of_host, of_device, strict=True):
            row.update({prefix + name: value for part in found for name, value in part.items()})
    return rows


def _of_sets(
    scorer: Scorer,
    protocol: Protocol,
    pictures: Sequence[Pair],
    output: Path,
    extractor: Extractor | None,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """FID and KID of every set, from the files as they are seen: 8 bits, border cut."""
    if not any(name in scorer.metrics for name in OF_SETS):
        return {}
    if extractor is None:
        raise ValueError("fid and kid need --features; see --help")
    cut = protocol.ruler.border

    def features(batch: Sequence[Pair], truth: bool) -> np.ndarray:
        levels = []
        for picture in batch:
            pixels = prepared(
                read_truth(picture) if truth else decode_picture(output_file(picture, output)), protocol.ruler
            )
            if pixels.dtype != np.uint8:
                pixels = (pixels >> 8).astype(np.uint8)
            levels.append(pixels[cut : pixels.shape[0] - cut, cut : pixels.shape[1] - cut])
        return extractor(np.stack(levels))

    found: dict[str, dict[str, float]] = {}
    with progress_bar("features", 2 * len(pictures)) as bar:
        for name, group in itertools.groupby(pictures, key=lambda picture: picture.set):
            members = list(group)
            sides = []
            for truth in (False, True):
                parts = []
                for batch in _batches(members, batch_size):
                    parts.append(features(batch, truth))
                    bar.update(len(batch))
                sides.append(np.concatenate(parts))
            try:
                distance = frechet_distance(sides[0], sides[1])
                kernel, _ = kernel_distance(sides[0], sides[1])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            both = {"fid": distance, "kid": 1000 * kernel}
            found[name] = {metric: value for metric, value in both.items() if metric in scorer.metrics}
    return found
