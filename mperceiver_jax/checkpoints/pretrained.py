"""A directory of pretrained weights: weights of a model in the layout of this package, as `convert import` writes them.

`record.json` lists the contents and their sources; the values are Orbax checkpoints `values/000`, `values/001`, ...
of a few hundred megabytes each. Orbax holds what it writes or reads twice in memory; in groups that is a small part
of the model's size. A directory is written elsewhere and renamed (`atomic_outputs`), hence complete where it exists.
"""

import contextlib
import ctypes
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from data_pipelines.files import atomic_outputs

FORMAT = 1
RECORD = "record.json"
GROUP_BYTES = 256 * 2**20
_HOW_TO_MAKE = "make one with `python -m mperceiver_jax.convert import FILES --output=DIR`"


class PretrainedDirectory:
    """A directory of pretrained weights, opened for reading.

    Attributes:
        path: the directory.
        record: the content of `record.json`: `sources` (name, layout, parts, licence, SHA-256 of every file),
            `parameters` (their number) and `values` ({path: [group, dtype, shape]}).

    Raises:
        FileNotFoundError: no such directory.
        ValueError: it holds no pretrained weights, those of another format, or not all of them.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        if not self.path.is_dir():
            if self.path.exists():
                raise ValueError(f"{path}: not a directory of pretrained weights; {_HOW_TO_MAKE}")
            raise FileNotFoundError(f"{path}: no such directory")
        try:
            record = json.loads((self.path / RECORD).read_text())
            written = record["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: no directory of pretrained weights (no readable {RECORD}); {_HOW_TO_MAKE}"
            ) from error
        if written != FORMAT:
            raise ValueError(
                f"{path}: pretrained weights of format {written}, but this version reads {FORMAT}; import them again"
            )
        if not _well_formed(record):
            raise ValueError(f"{path}: {RECORD} is damaged; import again")
        groups = sorted({group for group, _, _ in record["values"].values()})
        if absent := [f"values/{group}" for group in groups if not (self.path / "values" / group).is_dir()]:
            raise ValueError(f"{path}: {', '.join(absent)} missing; remove the directory and import again")
        self.record: dict[str, Any] = record
        self._held: tuple[str, dict[str, np.ndarray]] = ("", {})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{path: shape} of every parameter in the directory."""
        return {path: tuple(shape) for path, (_, _, shape) in self.record["values"].items()}

    def values(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, value) of every parameter in its stored dtype, a few at a time in memory.

        Raises:
            ValueError: the values cannot be read.
        """
        with _checkpointer() as checkpointer:
            for group in dict.fromkeys(group for group, _, _ in self.record["values"].values()):
                values = self._group(checkpointer, group)
                for path in list(values):
                    yield path, values.pop(path)
                _malloc_trim()

    def read(self, path: str) -> np.ndarray:
        """One parameter in its stored dtype. Its group is kept in memory until one of another group is read, so
        reading all in the order of `shapes` reads nothing twice.

        Raises:
            ValueError: it cannot be read.
        """
        group = self.record["values"][path][0]
        if self._held[0] != group:
            self._held = ("", {})
            with _checkpointer() as checkpointer:
                self._held = (group, self._group(checkpointer, group))
        return self._held[1][path]

    def _group(self, checkpointer: ocp.Checkpointer, group: str) -> dict[str, np.ndarray]:
        paths = [path for path, (its_group, _, _) in self.record["values"].items() if its_group == group]
        as_numpy = dict.fromkeys(paths, ocp.RestoreArgs(restore_type=np.ndarray))
        try:
            arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
            values = checkpointer.restore(self.path / "values" / group, args=arguments)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ValueError(f"{self.path}: values/{group} cannot be read ({reason}); import again") from error
        return {path: values[path] for path in paths}


def _well_formed(record: Any) -> bool:
    try:
        values = [(group, tuple(map(int, shape)), dtype) for group, dtype, shape in record["values"].values()]
        complete = all({"name", "layout", "licence", "sha256"} <= source.keys() for source in record["sources"])
        return complete and "parameters" in record and all(re.fullmatch(r"\d+", group) for group, _, _ in values)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def is_pretrained_directory(path: str | Path) -> bool:
    return (Path(path) / RECORD).is_file()


def write_pretrained(
    directory: str | Path, values: Iterable[tuple[str, np.ndarray]], sources: Sequence[Mapping[str, Any]]
) -> None:
    """Writes a directory of pretrained weights; it appears complete or not at all.

    In a distributed run only process 0 may call this (Orbax lets no other process write).

    Args:
        directory: must not exist, or be empty.
        values: (path, array in the layout of this package), consumed one by one.
        sources: see `PretrainedDirectory.record`.

    Raises:
        FileExistsError: the directory exists and is not empty, or another process has written it meanwhile.
    """
    directory = Path(directory).resolve()  # The target of a link can be replaced; a link cannot.
    require_empty(directory)
    stored: dict[str, list[Any]] = {}
    with atomic_outputs(directory) as (partial,):
        with _checkpointer() as checkpointer:
            for number, group in enumerate(_grouped(values)):
                name = f"{number:03}"
                checkpointer.save(partial / "values" / name, args=ocp.args.PyTreeSave(group))
                stored |= {path: [name, str(value.dtype), list(value.shape)] for path, value in group.items()}
                group.clear()
        total = sum(int(np.prod(shape)) for _, _, shape in stored.values())
        record = {"format": FORMAT, "parameters": total, "sources": sources, "values": stored}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def require_empty(directory: str | Path) -> None:
    """Raises FileExistsError where the path exists and is not an empty directory."""
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory}: exists already; choose another directory, or remove it first")


def _grouped(values: Iterable[tuple[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    group: dict[str, np.ndarray] = {}
    for path, value in values:
        if group and sum(array.nbytes for array in group.values()) + value.nbytes > GROUP_BYTES:
            yield group
            group = {}
        group[path] = value
    if group:
        yield group


def _checkpointer() -> ocp.Checkpointer:
    """Orbax for this process alone: it does not wait for other processes of a distributed run."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="pretrained"
    )
    # Trained weights do not compress.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, save_concurrent_gb=1, restore_concurrent_gb=1, multiprocessing_options=alone
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _malloc_trim() -> None:
    """Returns freed memory to the system: glibc keeps it, which for a whole model was half of the model's size."""
    with contextlib.suppress(OSError, AttributeError):  # Other C libraries do not have or need this function.
        ctypes.CDLL(None).malloc_trim(0)
