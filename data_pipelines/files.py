"""Failures of files that name the file: a full disk is told by a write, which has forgotten where it writes to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the path into an OSError from within that names no file; it stays the same error otherwise."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
