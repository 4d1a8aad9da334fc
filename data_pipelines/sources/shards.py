"""Prepared data (`prepare`) as a random-access source, from a local disk or a network path."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.datasets.records import Record
from data_pipelines.datasets.shards import read_manifest
from data_pipelines.files import cache_root
from data_pipelines.images import decode_image
from data_pipelines.sources.folders import PixelCache
from data_pipelines.stored.array_records import ArrayRecords


class PreparedImages:
    """One split of prepared data.

    Element: {'name': id, 'lq': pixels, 'gt': pixels}, or {'name', 'image'} for sets of clean images; pixels
    are uint8 or uint16 (height, width, 3). Any path of etils.epath will do; shards that are not on a local
    disk are copied to one the first time.

    Args:
      folder: what `prepare` has written.
      split: '' where there is only one.
      cache_megabytes: see `sources.PixelCache`.
      download_folder: for shards that come over a network; default: a folder in the user's cache.

    Raises:
      FileNotFoundError: no prepared data there, or a shard is gone.
      ValueError: an unknown split, or a manifest that cannot be read. On access: a damaged shard or image (named), or a
        test set without clean images.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "",
        cache_megabytes: float = 0,
        download_folder: str | os.PathLike[str] | None = None,
    ):
        self.manifest = read_manifest(folder)
        splits = self.manifest["splits"]
        if not split and len(splits) == 1:
            (split,) = splits
        if split not in splits:
            problem = f"no split {split!r}" if split else "several splits"
            raise ValueError(f"{folder} has {problem}; name one of {', '.join(splits)}, as in {folder}:{min(splits)}")
        self.split, self.task = split, self.manifest["task"]
        self._folder = str(folder)
        shards = splits[split]["shards"]
        paths = [_on_disk(epath.Path(folder) / s["file"], s["bytes"], download_folder) for s in shards]
        self._records = ArrayRecords(paths, "prepare or copy the data again")
        self._cache = PixelCache(cache_megabytes)

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        """The stored record: id, task, size and the encoded images, byte for byte those of the source."""
        return Record.unpacked(self._records[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.record(index)
        gt = record.gt
        if gt is None:
            raise ValueError(f"{record.id} has no clean image: {self.split} of this set is for submission only")
        named = f"{record.id} in {self._folder}"
        clean = self._cache.fetch(("gt", index), lambda: decode_image(gt, f"{named}, gt"))
        if record.lq is None:
            return {"name": record.id, "image": clean}
        lq = record.lq
        return {
            "name": record.id,
            "lq": self._cache.fetch(("lq", index), lambda: decode_image(lq, f"{named}, lq")),
            "gt": clean,
        }


def _on_disk(path: epath.Path, size: int, download_folder: str | os.PathLike[str] | None) -> str:
    """The shard as a local file; the record reader knows no network."""
    text = os.fspath(path)
    if not re.match(r"\w+://", text):
        if not path.exists() or path.stat().length != size:
            raise FileNotFoundError(f"{text}: the shard is missing or cut short; prepare or copy the data again")
        return text
    folder = Path(download_folder or cache_root() / "shards")
    local = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{path.name}"
    if local.is_file() and local.stat().st_size == size:
        return str(local)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as remote, tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
        try:
            while piece := remote.read(1 << 24):
                partial.write(piece)
            partial.flush()
            if os.path.getsize(partial.name) != size:
                raise FileNotFoundError(f"{text}: the shard is cut short; copy the data again")
            os.replace(partial.name, local)
        finally:
            Path(partial.name).unlink(missing_ok=True)
    return str(local)
