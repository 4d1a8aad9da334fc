"""A run's directory belongs to one configuration, which lies in it as `config.json`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.files import naming
from mperceiver_jax.distributed.runtime import on_first_process

Completion = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_MARK = "mperceiver_jax"
_ABSENT = "(absent)"
_PARTIAL = "config.json.partial"


class Difference(NamedTuple):
    """A field whose value changed; '(absent)' stands for a field that one side does not have."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.old!r} there, {self.new!r} here"


def compare_configs(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Sequence[str] = ()) -> list[Difference]:
    """The fields in which two nested configurations differ, in the order of their dotted names.

    Args:
        may_change: dotted prefixes that are left out: 'log' covers 'log.every', but not 'logger'.
    """
    before, after = _flatten(_plain(old)), _flatten(_plain(new))
    free = tuple(prefix + "." for prefix in may_change)
    return [
        Difference(field, before.get(field, _ABSENT), after.get(field, _ABSENT))
        for field in sorted(before.keys() | after.keys())
        if before.get(field, _ABSENT) != after.get(field, _ABSENT) and not (field + ".").startswith(free)
    ]


def check_workdir(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    may_change: Sequence[str] = (),
    complete: Completion = lambda stored: stored,
) -> None:
    """Whether `claim_workdir` would succeed; changes nothing, and every process looks for itself.

    Args:
        complete: gives a stored configuration the fields that it does not have, written before they existed.

    Raises:
        ValueError: as `claim_workdir`.
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
        differences = compare_configs(stored, config, may_change)
        if differences:
            raise ValueError(
                f"workdir {path} holds a run with another configuration. Give the same fields again, or "
                f"another workdir:\n  " + "\n  ".join(map(str, differences))
            )
    elif path.exists() and any(entry.name != _PARTIAL for entry in path.iterdir()):
        raise ValueError(f"workdir {path} is not empty and holds no run of ours; name a new or empty directory")


def claim_workdir(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    may_change: Sequence[str] = (),
    complete: Completion = lambda stored: stored,
) -> None:
    """Makes `workdir` this configuration's, or finds that it already is.

    Creates the directory and writes `config.json` at the first run. At a later run the
    configuration there is compared with this one; where only fields under `may_change` differ, the
    new one replaces it. In a distributed run every process calls this and process 0 does it.

    Args:
        config: nested dict of what JSON knows; tuples are stored as lists.
        may_change: dotted prefixes of fields that a resumed run may change.
        complete: see `check_workdir`.

    Raises:
        ValueError: another configuration's directory (names every field with both values), or a
            directory or file that is no run's at all. Nothing is changed then.
    """
    on_first_process(lambda: _claim(Path(workdir), config, may_change, complete))


def _claim(workdir: Path, config: Mapping[str, Any], may_change: Sequence[str], complete: Completion) -> None:
    check_workdir(workdir, config, may_change, complete)
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / _PARTIAL
    text = json.dumps({"written_by": _MARK, "config": _plain(config)}, indent=2, sort_keys=True)
    with naming(partial), open(partial, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, workdir / "config.json")


def read_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the run in `workdir`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: `config.json` is not one of ours.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: there is no config.json in it")
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); name another workdir") from None
    if not isinstance(content, dict) or content.get("written_by") != _MARK:
        raise ValueError(f"{path} was not written by this program; name another workdir")
    return content["config"]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, so that a tuple equals the list it is stored as."""
    return json.loads(json.dumps(dict(config)))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
