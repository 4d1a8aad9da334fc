"""The images in a folder: one rule for all commands that take folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines.images import SUFFIXES, is_image


class Listing(NamedTuple):
    """The files of a folder. Hidden ones are in neither list.

    Attributes:
      images: files with the suffix of an image, or whose content is one.
      others: all other files.
    """

    images: list[Path]
    others: list[Path]


def list_images(folder: str | os.PathLike[str], recursive: bool = False) -> Listing:
    """The files of a folder, sorted within each folder. A linked folder is listed once, and a loop of links ends."""
    found = Listing([], [])
    for path in files_below(folder, recursive):
        known = path.suffix.lower() in SUFFIXES
        (found.images if known or is_image(path) else found.others).append(path)
    return found


def files_below(folder: str | os.PathLike[str], recursive: bool = True) -> Iterator[Path]:
    """The files of a folder and, if `recursive`, of those below, also behind links. Each folder once; none hidden."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        # Data sets are often put together of links; one that leads back up would never end.
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        shown = (name for name in folders if not name.startswith(".") and name != "__MACOSX")
        folders[:] = sorted(shown) if recursive else []
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))
