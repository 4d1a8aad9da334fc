"""Mappings of arrays that are read when they are asked for."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any


class LazyMapping(Mapping[str, Any]):
    """{path: array} over functions that read the arrays. Arrays are read again at every access; none is kept."""

    def __init__(self, readers: Mapping[str, Callable[[], Any]]):
        self._readers = readers

    def __getitem__(self, path: str) -> Any:
        return self._readers[path]()

    def without(self, paths: Collection[str]) -> "LazyMapping":
        """The same mapping without some paths."""
        return LazyMapping({path: read for path, read in self._readers.items() if path not in paths})

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
