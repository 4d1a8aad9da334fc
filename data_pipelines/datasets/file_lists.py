"""List files: which images of a tree the names in them mean."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_pipelines.datasets.patterns import plain, without_suffix
from data_pipelines.images import SUFFIXES


def read_list(path: str | os.PathLike[str]) -> list[str]:
    """Every path in a list file: suffixes are dropped, '#' begins a comment.

    Whitespace separates paths. Where a line has suffixes of images, a path ends with its suffix, and may hold spaces.

    Raises ValueError for what is no readable text.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable list of file names ({error})") from None
    names = (name for line in lines for name in _names(line.partition("#")[0].replace("\\", "/")))
    return [without_suffix(name.lstrip("./")) for name in names]


def _names(line: str) -> list[str]:
    ended = re.findall(rf"\S.*?(?:{'|'.join(map(re.escape, SUFFIXES))})(?=\s|$)", line, re.IGNORECASE)
    return ended or line.split()


def members_of(
    listed: Sequence[str], degraded: Iterable[str], clean: Iterable[str]
) -> tuple[list[str], dict[str, str]]:
    """(the degraded images that a list names, in its order; names that mean no image -> why).

    A list may hold the paths of the machine it was made on: names and images agree by their last folders, as
    many as can agree for any name of the list. One number for all, because an image that is not there must
    not be taken for one that is called like it in another folder.
    """
    wanted, partners = _by_ends(listed, degraded), _by_ends(listed, clean)
    chosen: dict[str, None] = {}
    unknown: dict[str, str] = {}
    for name in listed:
        if len(paths := wanted.get(name, ())) == 1:
            chosen[paths[0]] = None
        elif paths:
            unknown[name] = f"in the list, but {' or '.join(paths[:3])} could be meant"
        elif name not in partners:
            unknown[name] = "in the list, but not in the tree"
    return [*chosen], unknown


def _by_ends(listed: Sequence[str], paths: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Name -> the images it may mean; names that mean none are left out."""
    ends: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in paths:
        parts = tuple(plain(without_suffix(path)).split("/"))
        for k in range(len(parts)):
            ends[parts[k:]].append(path)
    names = {name: tuple(plain(name).split("/")) for name in listed}
    depth = max((len(parts) - k for parts in names.values() for k in range(len(parts)) if parts[k:] in ends), default=1)
    return {name: ends[parts[-depth:]] for name, parts in names.items() if parts[-depth:] in ends}
