"""Small trees of images to evaluate, from the bundled photographs."""

import csv
from pathlib import Path

from PIL import Image

from data_pipelines.images import decode_image
from data_pipelines.sources.folders import bundled_photos

NOISE = ("CBSD68-15", "CBSD68-25", "CBSD68-50")


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photos(count=3, height=53, width=70):
    names = sorted(Path(bundled_photos("heldout")).glob("*.jpg"))[:count]
    return [decode_image(name)[100 : 100 + height + k, 100 : 100 + width] for k, name in enumerate(names)]


def table(folder):
    with (folder / "images.csv").open() as file:
        return {(row["set"], row["name"]): row for row in csv.DictReader(file)}
