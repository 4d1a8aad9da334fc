"""Files that appear complete or not at all, and errors that name the file."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the path into an OSError that names no file, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def placeholder_reason(start: bytes) -> str:
    """What a file that should hold data is, by its first bytes: something that downloads leave behind; else empty."""
    text = start[:512].lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page (HTML), not the file itself; download it again"
    if text.startswith(b"<?xml") and b"<error>" in text:
        return "it is a server's error message (XML), not the file itself; download it again"
    if text.startswith(b"\x1f\x8b"):
        return "it is compressed by gzip; decompress it with gunzip"
    return ""


def cache_root() -> Path:
    """The folder of everything that this project caches: `$XDG_CACHE_HOME/mperceiver_jax`, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().absolute() / "mperceiver_jax"


def write_atomically(path: str | os.PathLike[str], data: bytes, *, sync: bool = False) -> None:
    """Writes a whole file or, when interrupted, nothing: under a temporary name next to it, which is then renamed.

    Creates the folder if it does not exist. A file that was there is replaced.

    Args:
        sync: wait until the content is on the disk, so that a power failure leaves the old file or the new one.

    Raises:
        OSError: the file cannot be written; names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacement(path) as temporary, naming(path), open(temporary, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A temporary path for a file in the folder of `path`, with its suffix; it takes the place of `path` when the
    block succeeds, and is removed otherwise."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError where no file can be written in the folder, or it cannot be created. Creates nothing."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    with naming(folder), tempfile.TemporaryFile(dir=existing):
        pass


@contextmanager
def scratch_dir(path: Path) -> Iterator[Path]:
    """A new directory next to `path` that no other process uses; it is removed when the block ends."""
    # The name is random: a fixed one could belong to another process, or to the user.
    folder = Path(tempfile.mkdtemp(prefix=f"{path.name[:60]}.", suffix=".partial", dir=path.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_outputs(*outputs: Path) -> Iterator[list[Path]]:
    """Temporary paths for new files or directories, which get the names `outputs` when the block succeeds.

    All appear or none, the last first: where the first exists, all are complete. Nothing is replaced.

    Args:
        outputs: in one directory, which is created if it does not exist.

    Raises:
        FileExistsError: when the block ends, another process has written one of them. It is left as it is.
    """
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    with scratch_dir(outputs[0]) as folder:
        partials = [folder / output.name for output in outputs]
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
    # Unlike the renaming of a file, neither replaces anything but an empty directory.
    move = os.rename if partial.is_dir() else os.link
    try:
        move(partial, output)
    except OSError as error:
        if os.path.lexists(output):
            raise FileExistsError(f"{output}: another process has written there meanwhile; that is kept") from error
        partial.rename(output)  # Some file systems have no hard links.
