"""Sets of tensorflow_datasets: read through `tfds.data_source`, and built from any layout that `prepare` knows.

TensorFlow is needed for neither. Sets must be prepared in the array_record format, which `data_source`
requires; where they lie is TFDS's own matter (TFDS_DATA_DIR, ~/tensorflow_datasets), or a path is given.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.layouts import Layout
from data_pipelines.datasets.pack import Refused, read_records, refuse_within
from data_pipelines.datasets.records import Record
from data_pipelines.datasets.splits import Fault, Found
from data_pipelines.datasets.tree import Tree
from data_pipelines.images import decode_image
from data_pipelines.sources.folders import PixelCache

_NAME = re.compile(r"tfds:(?P<name>.+?):(?P<split>[^:\[\]()]+(?:\[[^\]]*\])?)(?:\((?P<lq>\w+),(?P<gt>\w+)\))?")


class TfdsImages:
    """A prepared TFDS set of pairs (features `lq` and `gt`) or clean images (feature `image`).

    Element: {'name', 'lq', 'gt'} or {'name', 'image'}; pixels uint8 or uint16 (height, width, 3), decoded from
    the stored bytes as everywhere else.

    Args:
      name: 'NAME', 'NAME/CONFIG', 'NAME/CONFIG:1.0.0', or the folder of a prepared version.
      split: of the set; TFDS's slices work, as in 'train[:90%]'.
      features: names of the degraded and the clean feature, where they are not `lq` and `gt`.
      cache_megabytes: see `sources.PixelCache`.

    Raises:
      ValueError: tensorflow_datasets is not installed, the set has no such split or features, or was not
        prepared as array_record.
      FileNotFoundError: the set was not prepared.
    """

    def __init__(self, name: str, split: str, features: tuple[str, str] | None = None, cache_megabytes: float = 0):
        tfds = _tfds()
        try:
            if os.sep in name and Path(name).is_dir():
                builder = tfds.builder_from_directory(name)
            else:
                # TFDS itself looks at the variable only once, when it is imported.
                builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
        except tfds.core.DatasetNotFoundError as error:
            first = str(error).splitlines()[0]
            raise FileNotFoundError(f"tfds:{name}: {first} Is TFDS_DATA_DIR where it was prepared?") from None
        known = builder.info.features
        lq, gt = features or ("lq", "gt")
        wanted = [n for n in (lq, gt) if n in known] if lq in known else [n for n in ("image",) if n in known]
        if not wanted or (lq in known and gt not in known):
            raise ValueError(
                f"tfds:{name} has the features {', '.join(sorted(known))}; pairs are {lq} and {gt}, clean images "
                "image. Name others as in tfds:NAME:SPLIT(rainy,clean)"
            )
        try:
            self._source = builder.as_data_source(split=split, decoders={n: tfds.decode.SkipDecoding() for n in wanted})
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise ValueError(f"tfds:{name}:{split} cannot be read: {str(error).splitlines()[0]}") from None
        self._title, self._wanted = f"tfds:{name}:{split}", tuple(wanted)
        self._cache = PixelCache(cache_megabytes)

    @classmethod
    def named(cls, text: str, cache_megabytes: float = 0) -> TfdsImages:
        """'tfds:NAME/CONFIG:SPLIT', with other features 'tfds:NAME:SPLIT(rainy,clean)'."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no TFDS source; one is written tfds:NAME/CONFIG:SPLIT")
        features = (match["lq"], match["gt"]) if match["lq"] else None
        return cls(match["name"], match["split"], features, cache_megabytes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self._source[index]
        except Exception as error:  # The reader raises whatever its C++ part does.
            raise ValueError(f"{self._title}: record {index}: damaged ({error}); prepare the set again") from error
        name = example.get("id", b"")
        name = name.decode() if isinstance(name, bytes) else str(name)
        decoded = {
            side: self._cache.fetch((side, index), self._decoding(bytes(example[side]), f"{name or index}, {side}"))
            for side in self._wanted
        }
        keys = ("lq", "gt") if len(decoded) == 2 else ("image",)
        pixels = dict(zip(keys, decoded.values(), strict=True))
        if len(pixels) == 2 and pixels["lq"].shape != pixels["gt"].shape:
            raise ValueError(f"{name or index}: degraded and clean image have different sizes")
        return {"name": name or str(index), **pixels}

    def _decoding(self, encoded: bytes, name: str) -> Callable[[], np.ndarray]:
        return functools.partial(decode_image, encoded, f"{name} of {self._title}")


def build(
    layout: Layout,
    task: str,
    found: Sequence[Found],
    tree: Tree,
    output: str | os.PathLike[str],
    name: str = "",
    *,
    strict: bool = False,
    workers: int = 0,
) -> tuple[dict[str, int], list[Fault]]:
    """Writes the pairs found as the TFDS set restoration_pairs/NAME below `output` (a TFDS data folder).

    An interrupted build starts again; its remains are removed.

    Returns (split -> records, images that could not be used). Raises Refused for those with `strict`,
    FileExistsError where there is such a set, ValueError for a set whose clean images are not published and
    for an output within the source.
    """
    tfds = _tfds()
    refuse_within(Path(output), tree)
    from data_pipelines.restoration_pairs.restoration_pairs_dataset_builder import Builder, PairsConfig

    parts = [part for part in found if part.pairs]
    secret = [part.split.name for part in parts if part.pairs[0].gt is None]
    if secret:
        raise ValueError(f"{layout.name}: {secret[0]} has no clean images; leave it out with --split")
    refused: list[Fault] = []

    def records(part: Found) -> Iterator[Record]:
        for record in read_records(part.pairs, task, tree, workers):
            if isinstance(record, tuple):
                refused.append(Fault(*record))
                if strict:
                    raise Refused(f"--strict: {': '.join(record)}")
            else:
                yield record

    config = PairsConfig(
        name=name or layout.name,
        description=layout.title,
        records={part.split.name: functools.partial(records, part) for part in parts},
        clean=parts[0].pairs[0].lq is None,
        home=layout.home,
        licence=layout.licence,
    )
    builder = Builder(data_dir=os.fspath(output), config=config, file_format="array_record")
    if Path(builder.data_dir).exists():
        raise FileExistsError(f"{builder.data_dir} exists already; take another --tfds-name, or delete it first")
    # TFDS cannot take up a build that was interrupted, and leaves its beginnings behind.
    for beginnings in Path(builder.data_dir).parent.glob(f"incomplete.*_{builder.version}"):
        shutil.rmtree(beginnings)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return {name: split.num_examples for name, split in builder.info.splits.items()}, refused


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"tfds: tensorflow_datasets cannot be imported ({error}); pip install 'mperceiver-jax[tfds]'"
        ) from None
    return tensorflow_datasets
