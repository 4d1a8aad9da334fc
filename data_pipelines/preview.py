"""An image test sheet of the nine degradations: one row for each photograph, one column for each task.

Usage: python -m data_pipelines.preview --output=sheet.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_pipelines.files import replacement
from data_pipelines.image_listing import list_images
from data_pipelines.images import read_image
from data_pipelines.messages import printable
from data_pipelines.tasks import TASKS

BUNDLED = Path(__file__).parent / "photos" / "heldout"
GAP = 4
TITLE_HEIGHT = 22


def photographs_in(directory: Path) -> list[Path]:
    """The image files of a folder by name. Raises FileNotFoundError where there is none."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no folder; name one that holds photographs (--images=DIR)")
    found = list_images(directory).images
    if not found:
        raise FileNotFoundError(f"{directory} holds no images")
    return found


def square_photograph(path: Path, size: int) -> np.ndarray:
    """The central square of an image at `size` pixels: float32 (size, size, 3) in [0, 1].

    Raises ValueError naming the file where it cannot be read as an image.
    """
    image = Image.fromarray(np.rint(read_image(path) * 255).astype(np.uint8))
    square = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(square, np.float32) / np.float32(255)


def psnr(degraded: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; infinite where they are equal."""
    error = float(np.mean((degraded - clean) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def sheet(photographs: Sequence[np.ndarray], seed: int) -> Image.Image:
    """Every photograph clean and in each of the nine degradations, with the PSNR of each against the clean
    one.

    Args:
      photographs: float32 (size, size, 3) in [0, 1], all of one size.
      seed: of the degradations; each cell has a generator of its own, so that an image does not depend on
        the
        rows and columns around it.
    """
    size = photographs[0].shape[0]
    columns, rows = 1 + len(TASKS), len(photographs)
    cell_height = size + TITLE_HEIGHT
    canvas = Image.new("RGB", (columns * (size + GAP) + GAP, rows * (cell_height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(9, min(14, size // 12)))

    def place(row: int, column: int, image: np.ndarray, title: str) -> None:
        left, top = GAP + column * (size + GAP), GAP + row * (cell_height + GAP)
        draw.text((left + 2, top + 2), title, fill="black", font=font)
        canvas.paste(Image.fromarray(np.rint(image * 255).astype(np.uint8)), (left, top + TITLE_HEIGHT))

    for row, clean in enumerate(photographs):
        place(row, 0, clean, "clean")
        for task in TASKS:
            degraded = task.synthesise(clean, np.random.default_rng((seed, row, task.label)))
            place(row, 1 + task.label, degraded, f"{task.title} {psnr(degraded, clean):.1f} dB")
    return canvas


def save(image: Image.Image, output: Path) -> None:
    """Writes an image file whole or not at all.

    Raises ValueError for a suffix that names no image format.
    """
    if output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{output} has no suffix of an image format; try {output.with_suffix('.png')}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacement(output) as temporary:
        image.save(temporary)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.preview",
        description="Draw a test sheet: photographs down, the clean image and the nine degradations "
        "across, with the PSNR of each. Look at it after every change to data_pipelines/degradations.",
        epilog="Severities are drawn as in training, so try a few seeds. Flakes, streaks and drops grow with "
        "the image: --size=96 and --size=512 show the same weather.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.png",
        help="sheet to write, replaced when complete",
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=BUNDLED,
        metavar="DIR",
        help="folder of photographs (default: the bundled ones held out from training)",
    )
    parser.add_argument("--size", type=int, default=256, help="side of each image in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the degradations (default: %(default)s)")
    parser.add_argument(
        "--rows",
        type=int,
        default=6,
        help="photographs to show, spread over the folder (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    for name in ("size", "rows"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    try:
        found = photographs_in(options.images)
        spread = np.linspace(0, len(found) - 1, min(options.rows, len(found))).round().astype(int)
        photographs = [square_photograph(found[index], options.size) for index in spread]
        save(sheet(photographs, options.seed), options.output)
    except (OSError, ValueError) as error:
        parser.exit(2, printable(f"{parser.prog}: {error}\n"))
    print(f"{options.output}: {len(photographs)} photographs x {1 + len(TASKS)} images")


if __name__ == "__main__":
    main()
