"""Files of several images: animations (GIF, APNG, WebP, AVIF) and the pages of a TIFF.

Every frame is read as an image of its own, as a viewer shows it, and all are written with their timing.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.files import write_atomically
from data_pipelines.image_headers import extra_images
from data_pipelines.image_limits import check_size, formats, without_pillows_limit
from data_pipelines.images import as_float
from mperceiver_jax.image_encoding import FORMATS, QUALITY, encode_tiff, pillow_image, pillow_options, with_chunks
from mperceiver_jax.image_files import LoadedImage, Rounding, levels_of, loaded
from mperceiver_jax.image_metadata import byte_order, entries, read_metadata

ANIMATED = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP", ".avif": "AVIF"}
"""Suffixes of formats that hold animations, and their names in Pillow."""
_SUBFILE = 254
_DEFAULT_MILLISECONDS = 100


@dataclass(frozen=True)
class Frames:
    """A file of several images.

    Attributes:
        path: the file.
        count: number of images.
        pages: whether they are the pages of a TIFF, which may differ in size, and no animation.
        durations: milliseconds that each frame is shown; empty for pages.
        loop: how often the animation is repeated; 0 is without end, None where the file does not say.
    """

    path: Path
    count: int
    pages: bool
    durations: tuple[int, ...] = ()
    loop: int | None = None

    def __iter__(self) -> Iterator[LoadedImage]:
        """The images in order. Raises ValueError naming the file and the frame."""
        images = _pages(self.path.read_bytes()) if self.pages else _animation(self.path)
        for number in range(1, self.count + 1):
            with _naming(self.path, f"frame {number} of {self.count}"):
                image = next(images)
            yield image


def frames_in(path: str | Path) -> Frames | None:
    """The frames of a file, or None where it holds one image, or where reading the image itself says what is wrong.

    Raises:
        ValueError: an animation whose frames cannot be found; names the file.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        more, kind = _further_images(path)
    except Exception:  # Pillow raises anything for damaged files; `read_image` counts the frames, too, and says why.
        return None
    if not more or kind == "TIFF":
        return Frames(path, more + 1, pages=True) if more else None
    durations = []
    with _naming(path, "the times of its frames"), Image.open(path, formats=formats()) as file:
        for index in range(more + 1):
            file.seek(index)
            if kind in ("WEBP", "AVIF"):
                file.load()  # Only then Pillow knows the time.
            durations.append(round(file.info.get("duration") or _DEFAULT_MILLISECONDS))
        return Frames(path, more + 1, False, tuple(durations), file.info.get("loop"))


def _further_images(path: Path) -> tuple[int, str | None]:
    """(number of images after the first, format)."""
    with without_pillows_limit(), Image.open(path, formats=formats()) as file:
        check_size(file, path.stat().st_size)
        return extra_images(file), file.format


@contextmanager
def _naming(path: Path, part: str) -> Iterator[None]:
    """Errors become a ValueError that names the file and the part of it that could not be read."""
    try:
        yield
    except Exception as error:  # Of a damaged file, the decoders of Pillow raise anything.
        raise ValueError(f"cannot read {part} in {path}: {str(error) or type(error).__name__}") from error


def write_frames(
    path: Path, images: Sequence[LoadedImage], like: Frames, rounding: Rounding = "round", quality: int = QUALITY
) -> None:
    """Writes all frames into one file, atomically, with the timing of another.

    Args:
        path: its suffix says the format: .gif, .png (APNG), .webp or .avif for animations, .tif or .tiff for pages.

    Raises:
        ValueError: a format that does not hold them.
    """
    check_holds(path, like)
    suffix, first = path.suffix.lower(), images[0]
    if FORMATS.get(suffix) == "tiff":
        pages = [levels_of(image, rounding) for image in images]
        return write_atomically(path, encode_tiff(pages, first.icc, first.metadata))
    alpha = any(image.alpha is not None for image in images)
    frames = [_frame(image, rounding, alpha) for image in images]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": list(like.durations)}
    if like.loop is not None:
        options["loop"] = like.loop
    if suffix == ".gif":
        options["disposal"] = 2 if alpha else 1
    if suffix in (".webp", ".avif"):
        options |= pillow_options(first.icc, first.metadata) | {"quality": quality}
    if suffix == ".webp":
        options |= {"lossless": quality == 100, "exact": True}
    stream = io.BytesIO()
    frames[0].save(stream, ANIMATED[suffix], **options)
    file = stream.getvalue()
    write_atomically(path, with_chunks(file, first.icc, first.metadata) if suffix == ".png" else file)


def check_holds(path: Path, frames: Frames) -> None:
    """Raises ValueError where the format that the suffix of a path stands for cannot hold these frames."""
    suffix = path.suffix.lower()
    if suffix not in (".tif", ".tiff") if frames.pages else suffix not in ANIMATED:
        kind = "the pages of a TIFF" if frames.pages else "an animation"
        raise ValueError(f"{path}: {suffix} does not hold {kind}; take --format={'tiff' if frames.pages else 'png'}")


def _frame(image: LoadedImage, rounding: Rounding, alpha: bool) -> Image.Image:
    levels = levels_of(image, rounding, 8)
    frame = pillow_image(levels, grey=False)
    return frame.convert("RGBA") if alpha else frame


def _animation(path: Path) -> Iterator[LoadedImage]:
    with without_pillows_limit(), Image.open(path, formats=formats()) as file:
        count = getattr(file, "n_frames", 1)
        for index in range(count):
            file.seek(index)
            # Pillow composes each frame with those before it.
            shown = np.asarray(file.convert("RGBA" if file.has_transparency_data else "RGB"))
            clear = shown.shape[2] == 4 and not (shown[..., 3] == 255).all()
            yield LoadedImage(
                as_float(np.ascontiguousarray(shown[..., :3])),
                alpha=as_float(np.ascontiguousarray(shown[..., 3])) if clear else None,
                icc=file.info.get("icc_profile"),
                metadata=read_metadata(file, *shown.shape[:2]),
            )


def _pages(data: bytes) -> Iterator[LoadedImage]:
    """Every page but reduced versions: the file with that page as its only one is an image like any other."""
    order = byte_order(data)
    (at,) = struct.unpack_from(order + "I", data, 4)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        found = {tag: where for tag, _, _, where in entries(data, order, at)}
        end = at + 2 + 12 * struct.unpack_from(order + "H", data, at)[0]
        (following,) = struct.unpack_from(order + "I", data, end)
        kind = struct.unpack_from(order + "I", data, found[_SUBFILE] + 8)[0] if _SUBFILE in found else 0
        if not kind & 0b101:
            one = bytearray(data)
            struct.pack_into(order + "I", one, 4, at)
            struct.pack_into(order + "I", one, end, 0)
            yield loaded(bytes(one))
        at = following
