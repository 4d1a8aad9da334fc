"""What files there are below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipelines.datasets.file_lists import read_list
from data_pipelines.image_listing import files_below
from data_pipelines.images import SUFFIXES


class Tree:
    """The files below a folder, listed once. Nothing in it is ever written.

    Raises FileNotFoundError where there is no such folder.
    """

    def __init__(self, source: str | os.PathLike[str]):
        self.source = Path(source)
        if not self.source.is_dir():
            raise FileNotFoundError(f"no folder at {source}; give the unpacked data set with --source=DIR")
        self.images: list[str] = []
        self.others: list[str] = []
        for path in files_below(self.source):
            kept = self.images if path.name.lower().endswith(SUFFIXES) else self.others
            kept.append(path.relative_to(self.source).as_posix())

    def names_in(self, list_file: str) -> list[str] | None:
        """The paths that a list file of the tree names; None where there is no such file."""
        found = [path for path in self.others if Path(path).name.lower() == list_file.lower()]
        return read_list(self.source / found[0]) if found else None
