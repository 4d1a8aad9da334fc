"""Prepared data on disk: ArrayRecord shards of records, and the manifest that says what is in them.

    FOLDER/manifest.json
    FOLDER/train-00000-of-00004.array_record ...

Shards hold one record a group, so that any of them is read alone; nothing is compressed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from data_pipelines.datasets.records import Record
from data_pipelines.files import replacement, write_atomically

FORMAT = "prepared images 1"
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard file.

    Attributes:
      file: its name.
      records, bytes, sha256: of the file.
      digests: of the records in order (`Record.digest`), from which the split's own is made.
      source: fingerprint of the images it was made from.
      skipped: what was left out: [kind, name, what].
    """

    file: str
    records: int
    bytes: int
    sha256: str
    digests: tuple[str, ...] = ()
    source: str = ""
    skipped: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def finished(cls, folder: Path, file: str, source: str) -> Shard | None:
        """The shard that an interrupted preparation left complete; None where it must be made (again)."""
        note = folder / f"{file}.json"
        try:
            fields = json.loads(note.read_text())
            shard = cls(**{**fields, "skipped": tuple(map(tuple, fields["skipped"]))})
            there = (folder / file).stat().st_size == shard.bytes
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return shard if there and shard.source == source else None


def write_shard(folder: Path, file: str, records: Iterable[Record | tuple[str, str, str]], source: str) -> Shard:
    """Writes a shard, then the note that it is complete; neither appears in part.

    Args:
      records: what goes in, and [kind, name, what] for what was left out.
    """
    digests: list[str] = []
    skipped: list[tuple[str, str, str]] = []
    with replacement(folder / file) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        try:
            for record in records:
                if isinstance(record, tuple):
                    skipped.append(record)
                else:
                    writer.write(record.packed())
                    digests.append(record.digest())
        finally:
            writer.close()
        size, checksum = partial.stat().st_size, _sha256(partial)
    shard = Shard(file, len(digests), size, checksum, tuple(digests), source, tuple(skipped))
    write_json(folder / f"{file}.json", dataclasses.asdict(shard))
    return shard


def shard_name(split: str, index: int, count: int) -> str:
    return f"{split}-{index:05d}-of-{count:05d}.array_record"


def split_summary(shards: Sequence[Shard], faults: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """What the manifest says of a split; `content_sha256` does not depend on how it was cut into shards."""
    digests = "\n".join(digest for shard in shards for digest in shard.digests)
    return {
        "records": sum(shard.records for shard in shards),
        "content_sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "shards": [{"file": s.file, "records": s.records, "bytes": s.bytes, "sha256": s.sha256} for s in shards],
        "left_out": [{"kind": kind, "name": name, "what": what} for kind, name, what in faults],
    }


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of prepared data, on a local disk or wherever etils.epath reaches (gs://, s3://).

    Raises FileNotFoundError where nothing was prepared, ValueError where it is not ours to read.
    """
    path = epath.Path(folder) / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"no prepared data at {folder}: {MANIFEST} is missing (see data_pipelines.prepare)")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest ({error})") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise ValueError(f"{path}: not a manifest (it has no splits); prepare the data again")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: its format is {manifest.get('format')!r}, this version reads {FORMAT!r}")
    return manifest


def check_shards(folder: str | os.PathLike[str]) -> int:
    """Reads prepared data back and compares every hash with the manifest.

    Returns the number of records. Raises ValueError that names the first shard that differs.
    """
    total = 0
    for split in read_manifest(folder)["splits"].values():
        digests = []
        for shard in split["shards"]:
            path = Path(folder) / shard["file"]
            if not path.is_file() or _sha256(path) != shard["sha256"]:
                raise ValueError(f"{path}: missing, or not what was written; prepare the data again")
            reader = ArrayRecordReader(str(path))
            digests += [Record.unpacked(reader.read([k])[0]).digest() for k in range(reader.num_records())]
            reader.close()
        if hashlib.sha256("\n".join(digests).encode()).hexdigest() != split["content_sha256"]:
            raise ValueError(f"{folder}: the records are not those of the manifest; prepare the data again")
        total += len(digests)
    return total


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file complete or not at all."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
