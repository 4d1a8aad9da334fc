"""What of Pillow's reading is allowed: sizes by this machine's memory, in place of a fixed limit; no other programs."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator

from PIL import Image

VARIABLE = "MPERCEIVER_JAX_MAX_MEGAPIXELS"
"""Environment variable that sets another limit."""
BYTES_PER_PIXEL = 32
"""Memory that reading takes at the peak: 16-bit colours, their float32 form, and a copy."""
_PIXELS_PER_BYTE = {"JPEG": 2_000, "MPO": 2_000, "PNG": 8_256, "TIFF": 16_000, "GIF": 16_000, "BMP": 2_040}
"""The most pixels that a byte of a file can hold: the best ratio of its compression, of samples of one bit."""
_COLOUR_PIXELS_PER_BYTE = {"PNG": 344, "BMP": 64}
"""The same where a pixel has 24 bits at least."""
_lock = threading.Lock()


def most_pixels() -> int:
    """The largest number of pixels that an image may have here.

    Raises:
      ValueError: the environment variable holds no positive number.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // BYTES_PER_PIXEL
    try:
        megapixels = float(given)
    except ValueError:
        megapixels = 0.0
    if not 0 < megapixels < float("inf"):
        raise ValueError(f"the environment variable {VARIABLE} must be a positive number, not {given!r}")
    return int(megapixels * 1e6)


def check_size(image: Image.Image, file_size: int) -> None:
    """Raises ValueError for more pixels than the limit, or than a file of this many bytes can hold."""
    pixels = image.width * image.height
    if pixels > (limit := most_pixels()):
        raise ValueError(
            f"{image.width}x{image.height} are {pixels / 1e6:,.0f} megapixels, more than the {limit / 1e6:,.0f} that "
            f"the memory of this machine allows; set the environment variable {VARIABLE} to allow more"
        )
    kind, colour = image.format or "", image.mode not in ("1", "L", "P")
    ratio = _COLOUR_PIXELS_PER_BYTE.get(kind) if colour else None
    ratio = ratio or _PIXELS_PER_BYTE.get(kind)
    if ratio is not None and pixels > ratio * file_size:
        raise ValueError(f"it says {image.width}x{image.height}, more than its {file_size:,} bytes can hold")


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read: all of Pillow's, but none for which it runs another program (Ghostscript)."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@contextlib.contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Switches Pillow's own limit off, which refuses the photographs of today's phones, while a file is opened."""
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
