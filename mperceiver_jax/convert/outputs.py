"""Outputs that appear complete or not at all, and never in the place of something else."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_dir(path: Path) -> Iterator[Path]:
    """A directory beside `path` that nobody else writes to; it is gone when the block ends."""
    # Under a name that no one has: a fixed one could be that of another process, or the user's own.
    room = Path(tempfile.mkdtemp(prefix=f"{path.name[:60]}.", suffix=".partial", dir=path.absolute().parent))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def atomic_outputs(*outputs: Path) -> Iterator[list[Path]]:
    """Where to write new files, or directories, that get the names `outputs` when the block ends well.

    All appear or none, the last first: where the first is, all are complete.

    Args:
        outputs: in one directory, which is made if it is not there.

    Raises:
        FileExistsError: when the block ends, another process has put something there. It is left as it is.
    """
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    with scratch_dir(outputs[0]) as room:
        partials = [room / output.name for output in outputs]
        yield partials
        published: list[Path] = []
        try:
            for partial, output in reversed(list(zip(partials, outputs, strict=True))):
                _publish(partial, output)
                published.append(output)
        except BaseException:
            for output in published:
                output.unlink()
            raise


def _publish(partial: Path, output: Path) -> None:
    # Unlike a file's renaming, neither replaces anything (but an empty directory).
    move = os.rename if partial.is_dir() else os.link
    try:
        move(partial, output)
    except OSError as error:
        if os.path.lexists(output):
            raise FileExistsError(f"{output}: another process has written there meanwhile; that is kept") from error
        partial.rename(output)  # There are file systems without hard links.
