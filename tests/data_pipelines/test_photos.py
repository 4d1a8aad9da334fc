"""The bundled photographs: how many, how large, how split, and that each has its author and licence."""

import re
from pathlib import Path

import pytest
from PIL import Image

import data_pipelines

PHOTOS = Path(data_pipelines.__file__).parent / "photos"
SMALL = {"chelsea", "china", "coffee", "flower", "rocket", "text"}  # kept at their own size, see CREDITS.md
FREE = {"CC0-1.0", "CC-BY-2.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "LGPL-3.0", "Public domain"}


def photograph(path: Path) -> str:
    return path.stem.rsplit("_", 1)[0]


def images(split: str) -> list[Path]:
    return sorted((PHOTOS / split).glob("*.jpg"))


def credits() -> dict[str, dict[str, str]]:
    """The table of CREDITS.md, by photograph."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (PHOTOS / "CREDITS.md").read_text(encoding="utf-8"), re.M)
    keys = ("split", "images", "title", "author", "source", "size", "licence")
    table = {name: dict(zip(keys, cells.split(" | "), strict=True)) for name, cells in rows}
    assert len(table) == len(rows)
    return table


def test_numbers_and_total_size():
    everything = images("train") + images("heldout")
    assert len(everything) >= 180
    assert len({photograph(p) for p in everything}) >= 120
    assert sum(p.stat().st_size for p in PHOTOS.rglob("*") if p.is_file()) <= 45e6


def test_split_is_by_photograph_and_a_seventh_is_held_out():
    train = {photograph(p) for p in images("train")}
    heldout = {photograph(p) for p in images("heldout")}
    assert not train & heldout
    assert len(heldout) / (len(train) + len(heldout)) == pytest.approx(1 / 7, abs=0.01)
    kinds = {"people": "friends", "animals": "owl", "monuments": "petra", "underwater": "sea3"}
    assert set(kinds.values()) <= heldout


def test_sides_and_mode():
    whole = {name for name, row in credits().items() if "gcompris-qt-data" in row["source"]}
    assert len(whole) == 84
    for path in images("train") + images("heldout"):
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.format == "JPEG", path.name
            assert max(image.size) <= 768, path.name
            if photograph(path) in SMALL | set(whole):
                assert max(image.size) >= 400, path.name
            else:
                assert min(image.size) >= 512, path.name


def test_jpeg_quality_is_at_least_92():
    # The first luminance step of the standard table is 16; scaled for quality q it is 16 * (200 - 2 q) / 100.
    for path in images("train") + images("heldout"):
        with Image.open(path) as image:
            tables = image.quantization  # type: ignore[attr-defined]
            assert tables[0][0] <= round(16 * (200 - 2 * 92) / 100), path.name


def test_every_photograph_has_author_source_and_free_licence():
    table = credits()
    for split in ("train", "heldout"):
        counts: dict[str, int] = {}
        for path in images(split):
            counts[photograph(path)] = counts.get(photograph(path), 0) + 1
        assert {n for n, row in table.items() if row["split"] == split} == set(counts)
        assert {n: int(table[n]["images"]) for n in counts} == counts
    for name, row in table.items():
        assert row["author"].strip() and row["source"].strip(), name
        licence = re.sub(r"\[(.*)\]\(.*\)", r"\1", row["licence"])
        assert licence in FREE, (name, licence)
        if licence != "Public domain":
            text = PHOTOS / re.search(r"\((.*)\)", row["licence"]).group(1)  # type: ignore[union-attr]
            assert text.stat().st_size > 5000, text
