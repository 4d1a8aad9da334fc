"""Which directories on disk are complete checkpoints, determined without Orbax.

A step's directory is complete when its record can be read and every item that the
record names has its index. Orbax commits by renaming, so its own interrupted saves have
other names; this protects against the rest: an incomplete copy, an interrupted deletion.
"""

import json
from typing import Any

from etils import epath

RECORD = "record"
_REPLACED = ".replaced"
# In the name of a checkpoint that Orbax is writing.
_UNFINISHED = ".orbax-checkpoint-tmp"


def read_record(directory: epath.Path, step: int) -> dict[str, Any] | None:
    """The record of a complete checkpoint (its `leaves`, `metadata`, `iterators`), otherwise None."""
    path = directory / str(step)
    try:
        record = json.loads((path / RECORD / "metadata").read_text())
        items = [name for name, leaves in record["leaves"].items() if leaves]
    except (OSError, ValueError, KeyError):
        return None
    needed = [path / "_CHECKPOINT_METADATA"]
    needed += [path / name / file for name in items for file in ("_METADATA", "manifest.ocdbt")]
    return record if all(file.exists() for file in needed) else None


def complete_steps(directory: epath.Path) -> list[int]:
    """Steps of the complete checkpoints, in increasing order."""
    if not directory.is_dir():
        return []
    steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    return [step for step in steps if read_record(directory, step) is not None]


def prepare(directory: epath.Path) -> None:
    """Prepares a directory for saving, and checks now, not hours later, that it can be written.

    First it removes what an earlier run was deleting or never finished writing, which also frees the space of a full
    disk. A checkpoint whose replacement was never finished gets its name back. Only one process may call this.

    Raises:
        OSError: it cannot be created or written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in list(directory.iterdir()):
        incomplete = path.name.isdigit() and path.is_dir() and read_record(directory, int(path.name)) is None
        if incomplete or _UNFINISHED in path.name:
            path.rmtree()
    probe = unused(directory, "probe")
    probe.write_text("")
    probe.unlink()
    remove_replaced(directory)
    for path in directory.glob(f"*{_REPLACED}"):
        path.rename(directory / path.name.removesuffix(_REPLACED))


def move_away(directory: epath.Path, step: int) -> None:
    """Renames a checkpoint that is about to be replaced; `prepare` restores it if that fails."""
    (directory / str(step)).rename(directory / f"{step}{_REPLACED}")


def set_aside(directory: epath.Path, step: int) -> epath.Path:
    """Renames a checkpoint that cannot be read, so that its step can be saved again; returns its new path."""
    path = unused(directory, f"{step}.damaged")
    (directory / str(step)).rename(path)
    return path


def remove_replaced(directory: epath.Path) -> None:
    """Deletes the checkpoints that were moved away and have been replaced."""
    for path in directory.glob(f"*{_REPLACED}"):
        if (directory / path.name.removesuffix(_REPLACED)).exists():
            path.rmtree()


def unused(directory: epath.Path, name: str) -> epath.Path:
    """The first of name, name-1, name-2, ... that does not exist."""
    path, count = directory / name, 0
    while path.exists():
        count += 1
        path = directory / f"{name}-{count}"
    return path
