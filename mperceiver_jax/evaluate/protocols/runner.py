"""An evaluation from beginning to end: read, restore, measure, keep; batch after batch of images of one size."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import write_atomically
from data_pipelines.images import as_float, decode_image
from mperceiver_jax.evaluate.metrics.fid_kid import Extractor, frechet_distance, kernel_distance
from mperceiver_jax.evaluate.metrics.scorer import SET_METRICS, Scorer
from mperceiver_jax.evaluate.protocols.pair import Pair, list_hash
from mperceiver_jax.evaluate.protocols.preprocessing import measured, prepared
from mperceiver_jax.evaluate.protocols.protocol import Protocol
from mperceiver_jax.evaluate.protocols.reader import NoiseStream, read_pair, read_truth
from mperceiver_jax.evaluate.protocols.results_log import ResultsLog
from mperceiver_jax.image_encoding import encode_png
from mperceiver_jax.image_files import quantise
from mperceiver_jax.progress import progress_bar

# What restores images of one size: list of float32 (h, w, 3) in [0, 1] -> the same, restored.
Restore = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        title: in tables.
        identity: what its images depend on: a folder, or checkpoint, sampler, seed.
        restore: restores images of one size; None where outputs are read from a folder.
    """

    title: str
    identity: dict[str, Any]
    restore: Restore | None = None


def evaluate(
    subject: Subject,
    protocol: Protocol,
    images: Sequence[Pair],
    scorer: Scorer,
    output: Path,
    *,
    batch_size: int = 1,
    extractor: Extractor | None = None,
    settings: dict[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    left_out: list[str] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Measures every image that was not measured before.

    Restored images are written to `output/restored/<set>/<name>.png`, scored before they are rounded
    unless the protocol rounds or measures what is stored. Killed at any moment, it goes on with the same call.

    Args:
        batch_size: images of one size that are restored and measured at a time.
        extractor: needed for FID and KID, see `set_metrics`.
        settings: further things that figures depend on; part of the evaluation's identity.
        part: (index, count) measures only every count-th batch and no whole sets: for several processes that
            write into one folder.
        left_out: takes a sentence for each image that cannot be read or measured, and the others are the result; None
            makes them an error, after the others were measured.

    Returns:
        (a row per measured image in the order given: `set`, `name`, `height`, `width`, `output`, the metrics, and
        `input_<metric>` where there is a degraded image; the metrics of whole sets).

    Raises:
        ValueError: images that cannot be read or measured, all named; no image at all.
        EvaluationMismatch: `output` holds the results of another one.
    """
    identity = _identity(subject, protocol, images, scorer, settings or {})
    journal = ResultsLog(output, identity, f"{part[0]}-of-{part[1]}" if part else "")
    stamps = {image.key: image.file_signature() for image in images}
    open_ones = [image for image in images if not _done(journal, image, stamps, output, subject)]
    stream = NoiseStream(protocol.noise_seed, images)
    if part is not None:
        # Divided before what is done is left out: the parts of two processes never overlap.
        share = {pair.key for batch in list(_batches(images, batch_size))[part[0] :: part[1]] for pair in batch}
        images, open_ones = ([image for image in some if image.key in share] for some in (images, open_ones))
    failed: dict[str, str] = {}
    with (
        ThreadPoolExecutor() as pool,
        progress_bar("evaluating", len(images), len(images) - len(open_ones)) as bar,
    ):
        read = lambda image: pool.submit(_read, image, protocol, stream)
        for batch, loaded in _read_ahead(read, list(_batches(open_ones, batch_size)), failed):
            outputs = _outputs(subject, batch, loaded, output, protocol.preprocessing.levels == "stored")
            rows = _measure(pool, batch, loaded, outputs, scorer, protocol, failed)
            journal.append({**row, "file_signature": stamps[row["key"]]} for row in rows)
            bar.update(len(batch))
    if failed and left_out is None:
        raise ValueError(f"{'; '.join(failed.values())}; the others are measured, and the same command goes on")
    if failed and left_out is not None:
        left_out += failed.values()
        images = [image for image in images if image.key not in failed]
        if not images:
            raise ValueError(f"nothing to measure: {'; '.join(failed.values())}")
    found = [
        {k: v for k, v in journal.rows[image.key].items() if k not in ("key", "file_signature")}
        | {"output": str(output_file(image, output).resolve())}
        for image in images
    ]
    if part is not None:
        return found, {}
    return found, _of_sets(scorer, protocol, images, output, extractor, batch_size)


def output_file(image: Pair, output: Path) -> Path:
    """The output of an image: another system's, or what our model made of it."""
    return image.output or output / "restored" / image.set / f"{image.name}.png"


def _identity(
    subject: Subject, protocol: Protocol, images: Sequence[Pair], scorer: Scorer, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the figures depend on."""
    return {
        "protocol": protocol.name,
        "preprocessing": protocol.preprocessing.describe(),
        "metrics": list(scorer.metrics),
        "images": list_hash(images),
        "count": len(images),
        "noise_seed": protocol.noise_seed,
        **settings,
        **subject.identity,
    }


def _read_ahead(
    read: Callable[[Pair], Future], batches: Sequence[list[Pair]], failed: dict[str, str]
) -> Iterator[tuple[list[Pair], list[tuple]]]:
    """(images, what was read of them) of every batch; the next batch is decoded while one is in use.

    Args:
        failed: takes a sentence for every image that cannot be read; the image is left out of its batch.
    """
    ahead = [[read(image) for image in batch] for batch in batches[:1]]
    for number, batch in enumerate(batches):
        ahead += [[read(image) for image in following] for following in batches[number + 1 : number + 2]]
        readable, loaded = [], []
        for image, future in zip(batch, ahead.pop(0), strict=True):
            try:
                loaded.append(future.result())
                readable.append(image)
            except ValueError as error:
                failed[image.key] = str(error)
        if readable:
            yield readable, loaded


def _done(journal: ResultsLog, image: Pair, stamps: dict, output: Path, subject: Subject) -> bool:
    kept = subject.restore is None or output_file(image, output).is_file()
    return kept and journal.done(image.key, stamps[image.key])


def _batches(images: Sequence[Pair], size: int) -> Iterator[list[Pair]]:
    """Set by set, images of one size together, as many as fit."""
    for _, group in itertools.groupby(images, key=lambda image: image.set):
        sizes: dict[tuple[int, int], list[Pair]] = {}
        for image in group:
            sizes.setdefault(image.size, []).append(image)
        for alike in sizes.values():
            for first in range(0, len(alike), size):
                yield alike[first : first + size]


def _read(image: Pair, protocol: Protocol, stream: NoiseStream) -> tuple:
    try:
        return read_pair(image, protocol.preprocessing, stream)
    except ValueError as error:
        raise ValueError(f"{image.key}: {error}") from error


def _outputs(
    subject: Subject, batch: Sequence[Pair], loaded: Sequence[tuple], output: Path, as_stored: bool
) -> list[np.ndarray]:
    if subject.restore is None:
        return [made for _, _, made in loaded]
    outputs = subject.restore([degraded for degraded, _, _ in loaded])
    files = [quantise(restored) for restored in outputs]
    for image, file in zip(batch, files, strict=True):
        write_atomically(output_file(image, output), encode_png(file))
    return [as_float(file) for file in files] if as_stored else outputs


def _measure(
    pool: ThreadPoolExecutor,
    batch: Sequence[Pair],
    loaded: Sequence[tuple],
    outputs: Sequence[np.ndarray],
    scorer: Scorer,
    protocol: Protocol,
    failed: dict[str, str],
) -> list[dict[str, Any]]:
    """The rows of a batch of images of one size; none, and a sentence for each, where a metric refuses that size."""
    see = lambda pixels: measured(pixels, protocol.preprocessing)
    truths = [see(clean) for _, clean, _ in loaded]
    sides: dict[str, list[np.ndarray | None]] = {
        "": [see(made) for made in outputs],
        "input_": [None if degraded is None else see(degraded) for degraded, _, _ in loaded],
    }
    rows: list[dict[str, Any]] = [
        {"key": p.key, "set": p.set, "name": p.name, "height": p.size[0], "width": p.size[1]} for p in batch
    ]
    for prefix, seen in sides.items():
        # All of one set have a degraded image, or none has.
        if any(image is None for image in seen):
            continue
        images = [image for image in seen if image is not None]
        try:
            of_host = list(pool.map(scorer.on_host, images, truths))
            of_device = scorer.on_device(images, truths)
        except ValueError as error:
            failed.update({pair.key: f"{pair.key}: {error}" for pair in batch})
            return []
        for row, *found in zip(rows, of_host, of_device, strict=True):
            row.update({prefix + name: value for part in found for name, value in part.items()})
    return rows


def _of_sets(
    scorer: Scorer,
    protocol: Protocol,
    images: Sequence[Pair],
    output: Path,
    extractor: Extractor | None,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """FID and KID of every set, from the files as they are seen: 8 bits, border cut."""
    if not any(name in scorer.metrics for name in SET_METRICS):
        return {}
    if extractor is None:
        raise ValueError("fid and kid need --features; see --help")
    cut = protocol.preprocessing.border

    def features(batch: Sequence[Pair], truth: bool) -> np.ndarray:
        levels = []
        for image in batch:
            pixels = prepared(
                read_truth(image) if truth else decode_image(output_file(image, output)), protocol.preprocessing
            )
            if pixels.dtype != np.uint8:
                pixels = (pixels >> 8).astype(np.uint8)
            levels.append(pixels[cut : pixels.shape[0] - cut, cut : pixels.shape[1] - cut])
        return extractor(np.stack(levels))

    found: dict[str, dict[str, float]] = {}
    with progress_bar("features", 2 * len(images)) as bar:
        for name, group in itertools.groupby(images, key=lambda image: image.set):
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
