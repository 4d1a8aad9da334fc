"""The images of a call of the restore command, and where each result goes."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.image_listing import list_images
from mperceiver_jax.image_encoding import FORMATS
from mperceiver_jax.image_frames import ANIMATED, frames_in

# Other suffixes of formats that are written.
_LIKE = {".jfif": ".jpg", ".jpe": ".jpg", ".apng": ".png"}
LONGEST_NAME = 255
"""Bytes of a file name, on all common file systems."""


class Job(NamedTuple):
    """One image to restore.

    Attributes:
        source: the image.
        target: the restored image; its suffix says the format.
        sheet: the file with degraded and restored image side by side, or None.
    """

    source: Path
    target: Path
    sheet: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.target, self.sheet) if path is not None]


class Plan(NamedTuple):
    """What a call does.

    Attributes:
        jobs: the images that are restored.
        done: images whose results exist already and are kept.
        left_out: files of folders that are no images.
    """

    jobs: list[Job]
    done: list[Job]
    left_out: list[Path]


def plan(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    recursive: bool = False,
    side_by_side: bool = False,
    overwrite: bool = False,
    kind: str = "png",
) -> Plan:
    """Pairs every image with its output, in the output folder: `<stem>.png`, or with the suffix of another format.

    `kind` is that format: png, jpg, webp, tiff or avif, or `same` for that of each image, where it can be written.
    Images of one folder that would have the same output are named by their suffix, too: `<stem>_jpg.png`.

    Of a folder, all images are taken but hidden ones (`image_listing.list_images`); `recursive` also takes those of
    its subfolders and keeps these in the output. A file that is named twice is restored once. Results that exist
    are kept, so that a call continues one that was interrupted, unless `overwrite` is given. Nothing is written here.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a folder without images; the output is a file, an input folder or (`recursive`) inside
            one; two images would get the same name; an output is an input, or its name is too long. Names what is
            in the way.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"the output {output} is a file; name a folder")
    found: dict[Path, tuple[Path, Path]] = {}
    left_out: list[Path] = []
    for given in map(Path, inputs):
        images, others = _images(given, output, recursive)
        left_out += others
        for source, place in images:
            found.setdefault(source.resolve(), (source, output / place))
    named = {source: _named(place, _suffix(source, kind)) for source, place in found.values()}
    users = Counter(str(place).casefold() for place in named.values())
    jobs = []
    for source, place in named.items():
        if users[str(place).casefold()] > 1:
            place = place.with_name(f"{place.stem}_{source.suffix[1:].lower()}{place.suffix}")
        jobs.append(Job(source, place, place.with_name(f"{place.stem}_side_by_side.png") if side_by_side else None))
    _refuse_collisions(jobs)
    if own := [path for job in jobs for path in job.outputs if path.resolve() in found]:
        raise ValueError(f"{_some(own)} would be overwritten, but is an input; name another --output")
    if long := [path for job in jobs for path in job.outputs if len(os.fsencode(path.name)) > LONGEST_NAME]:
        raise ValueError(f"{_some(long)}: a name of more than {LONGEST_NAME} bytes; rename the image")
    is_done = [not overwrite and all(path.exists() for path in job.outputs) for job in jobs]
    return Plan(
        [job for job, kept in zip(jobs, is_done, strict=True) if not kept],
        [job for job, kept in zip(jobs, is_done, strict=True) if kept],
        left_out,
    )


def _named(place: Path, suffix: str) -> Path:
    return place.with_name(f"{place.stem}{suffix}")


def _suffix(source: Path, kind: str) -> str:
    """The suffix of the result of an image; `kind` as in `plan`."""
    own = source.suffix.lower()
    if kind == "same":
        return source.suffix if own in (*FORMATS, *ANIMATED) else _LIKE.get(own, ".png")
    if kind != "tiff" and FORMATS.get(own) == "tiff" and (frames := frames_in(source)) is not None and frames.pages:
        return ".tif"  # No other format has pages.
    return f".{kind}"


def _images(given: Path, output: Path, recursive: bool) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """((image, its path below the output folder) for each image of an input, other files there)."""
    if not given.exists():
        raise FileNotFoundError(f"there is no {given}")
    if not given.is_dir():
        return [(given, Path(given.name))], []
    folder, target = given.resolve(), output.resolve()
    if target == folder or (recursive and folder in target.parents):
        raise ValueError(f"the output {output} is (in) the input folder {given}; name one outside")
    listing = list_images(given, recursive)
    if not listing.images:
        deeper = "" if recursive else "; subfolders are searched with --recursive"
        raise ValueError(f"no images in {given}{deeper}")
    return [(path, path.relative_to(given)) for path in listing.images], listing.others


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    sources: dict[Path, list[Path]] = {}
    for job in jobs:
        for path in job.outputs:
            sources.setdefault(path, []).append(job.source)
    clashes = [f"{_list(names)} -> {path}" for path, names in sources.items() if len(names) > 1]
    if clashes:
        raise ValueError(
            "several images would be written under one name; rename them or restore them in separate calls:"
            "\n  " + "\n  ".join(clashes[:10])
        )


def _some(paths: Sequence[Path]) -> str:
    """The first of the paths, and how many more there are."""
    return f"{paths[0]} (and {len(paths) - 1} more)" if len(paths) > 1 else str(paths[0])


def _list(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))
