"""The workdir of a run belongs to one configuration, which is stored in it as `config.json`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.files import write_atomically
from mperceiver_jax.checkpoints.bind import as_json, differences
from mperceiver_jax.distributed.runtime import on_first_process

Completion = Callable[[Mapping[str, Any]], Mapping[str, Any]]
LEASE = "in_use.json"
"""The file that says which process is using the workdir, see `checkpoints.lease`."""
_MARK = "mperceiver_jax"


def check_workdir(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    may_change: Sequence[str] = (),
    complete: Completion = lambda stored: stored,
) -> None:
    """Checks that `bind_workdir` would succeed, without changing anything; every process checks for itself.

    Args:
        complete: adds fields to a stored configuration that was written before they existed.

    Raises:
        ValueError: as `bind_workdir`.
    """
    path = Path(workdir)
    if path.exists() and not path.is_dir():
        raise ValueError(f"workdir {path} is a file; name a directory")
    if (path / "config.json").exists():
        stored: Mapping[str, Any] = _read(path / "config.json")
        try:
            stored = complete(stored)
        except ValueError as error:
            raise ValueError(f"workdir {path} holds a run that this version cannot continue: {error}") from error
        changed = differences(stored, config, may_change)
        if changed:
            raise ValueError(
                f"workdir {path} holds a run with another configuration. Give the same fields again, or "
                f"another workdir:\n  " + "\n  ".join(map(str, changed))
            )
    elif path.exists() and any(entry.suffix != ".partial" and entry.name != LEASE for entry in path.iterdir()):
        raise ValueError(f"workdir {path} is not empty and does not hold a run; name a new or empty directory")


def bind_workdir(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    may_change: Sequence[str] = (),
    complete: Completion = lambda stored: stored,
) -> None:
    """Binds `workdir` to this configuration, or checks that it is bound to it.

    The first run creates the directory and writes `config.json`. A later run compares the
    configuration there with its own; where only fields under `may_change` differ, its own
    replaces it. In a distributed run every process calls this and process 0 writes.

    Args:
        config: nested dict of JSON values; tuples are stored as lists.
        may_change: dotted prefixes of fields that a resumed run may change.
        complete: see `check_workdir`.

    Raises:
        ValueError: the directory of another configuration (names every field with both values), or a
            directory or file that is not a run. Nothing is changed then.
    """
    on_first_process(lambda: _bind(Path(workdir), config, may_change, complete))


def _bind(workdir: Path, config: Mapping[str, Any], may_change: Sequence[str], complete: Completion) -> None:
    check_workdir(workdir, config, may_change, complete)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", config_file(config), sync=True)


def config_file(config: Mapping[str, Any], **fields: Any) -> bytes:
    """The content of a `config.json`: the configuration, and further fields next to it."""
    content = {"written_by": _MARK, "config": as_json(config), **fields}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def read_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the run in `workdir`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: `config.json` was not written by this program.
    """
    path = Path(workdir) / "config.json"
    if Path(workdir).is_file():
        raise FileNotFoundError(
            f"{workdir} is a file and no run; `python -m mperceiver_jax.convert import {workdir} --output=DIR "
            "--config=FILE` makes a run of weights"
        )
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: there is no config.json in it")
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); name another workdir") from None
    if not isinstance(content, dict) or content.get("written_by") != _MARK:
        raise ValueError(f"{path} was not written by this program; name another workdir")
    return content["config"]
