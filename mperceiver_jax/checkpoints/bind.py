"""Folders that belong to one run, model or configuration, and what differs where they belong to another."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.stored.manifest import read_manifest, write_manifest

ABSENT = "(absent)"


class Difference(NamedTuple):
    """A field whose value differs; '(absent)' stands for a field that one side does not have."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.old!r} there, {self.new!r} here"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Sequence[str] = ()) -> list[Difference]:
    """The fields in which two nested mappings differ, in the order of their dotted names.

    Args:
        may_change: dotted prefixes that are left out: 'log' covers 'log.every', but not 'logger'.
    """
    before, after = _flatten(as_json(old)), _flatten(as_json(new))
    free = tuple(prefix + "." for prefix in may_change)
    return [
        Difference(field, before.get(field, ABSENT), after.get(field, ABSENT))
        for field in sorted(before.keys() | after.keys())
        if before.get(field, ABSENT) != after.get(field, ABSENT) and not (field + ".").startswith(free)
    ]


def bind(
    folder: str | os.PathLike[str], identity: Mapping[str, Any], *, contents: str, remedy: str, free: Sequence[str] = ()
) -> None:
    """Binds a folder to the identity of its contents, or checks that it is bound to this one.

    Args:
        identity: written into the folder as its manifest, where there is none yet.
        contents: what the folder holds, for messages: 'latents of the dual branch'.
        remedy: what the user can do where the folder belongs to another identity.
        free: dotted prefixes of the identity that may differ.

    Raises:
        ValueError: the folder belongs to another identity (names every field that differs), or holds other files.
    """
    folder = Path(folder)
    found = read_manifest(folder)
    if found is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is not empty and does not hold {contents}; name a new directory")
        write_manifest(folder, as_json(identity))
    elif changed := differences(found, identity, free):
        fields = ", ".join(difference.field for difference in changed)
        raise ValueError(f"{folder} holds {contents} made by another model or with other settings ({fields}); {remedy}")


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as it comes back from JSON, so that a tuple equals the list it is stored as."""
    return json.loads(json.dumps(dict(value)))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
