"""Gathers freely licensed photographs from the Debian package gcompris-qt-data, for training.

    apt-get download gcompris-qt-data
    python scripts/gather_photographs.py gcompris-qt-data_*.deb --output=photographs
    python -m mperceiver_jax.main --config=configs/allinone.py:base --config.data.images=photographs

The package's Qt resource archives hold photographs of animals, monuments, musicians and the sea, each with its
author, licence and source in a README next to it. Photographs in the public domain, under CC0 and under Creative
Commons licences that allow changes are taken. Each is reduced to three quarters of its size or less, which removes most
traces of its first compression, and saved as JPEG of quality 92 without metadata. `CREDITS.md` in the output lists
author, licence and source of every file. The photographs bundled with the project were made by this command;
`--exclude=data_pipelines/photos` leaves out those that are bundled already.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from qt_resources import read_rcc

ARCHIVES = ("explore_farm_animals", "explore_monuments", "explore_world_animals", "explore_world_music", "clickgame")
# As the READMEs spell them -> as the project's credits do.
LICENCES = {
    "public domain": "Public domain",
    "cc0-1.0": "CC0-1.0",
    "cc0 1.0": "CC0-1.0",
    "cc-by 2.0": "CC-BY-2.0",
    "cc-by 4.0": "CC-BY-4.0",
    "cc-by-sa 3.0": "CC-BY-SA-3.0",
    "cc-by-sa 4.0": "CC-BY-SA-4.0",
}
SUFFIXES = (".webp", ".jpg", ".jpeg")
# Of the shorter side in pixels before the reduction, and of the longer side after it.
SMALLEST, LONGEST = 400, 768


@dataclass(frozen=True)
class Credit:
    """Who made a photograph, under which licence, and where it was published."""

    author: str
    licence: str
    source: str


def read_credits(readme: str) -> dict[str, Credit]:
    """Credit by file name, of the paragraphs of a README of the package that name a free licence."""
    found = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        fields = dict(re.findall(r"^(Copyright|License|Source): *(.+)$", paragraph, re.M))
        licence = LICENCES.get(fields.get("License", "").strip().lower())
        listed = re.search(r"^Files?: *\n?(.*)\Z", paragraph, re.M | re.S)
        if licence and listed:
            credit = Credit(fields.get("Copyright", "unknown").strip(), licence, fields.get("Source", "").strip())
            found |= dict.fromkeys(listed[1].split(), credit)
    return found


def photographs(archive: bytes, where: str) -> Iterator[tuple[str, Image.Image, Credit]]:
    """(name, image, credit) of every credited photograph in a Qt resource archive, as RGB."""
    files = dict(read_rcc(archive, where))
    for path, content in sorted(files.items()):
        if not path.endswith("/README"):
            continue
        folder = PurePosixPath(path).parent
        for name, credit in read_credits(content.decode()).items():
            stored = files.get(str(folder / name))
            if stored is None or not name.endswith(SUFFIXES):
                continue
            image = Image.open(io.BytesIO(stored))
            if image.mode == "RGB" and min(image.size) >= SMALLEST:
                yield snake_case(PurePosixPath(name).stem), image, credit


def snake_case(name: str) -> str:
    """`chichenItza` -> `chichen_itza`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def prepare(image: Image.Image) -> Image.Image:
    """The image at three quarters of its size, or with its longer side at 768 pixels where that is smaller."""
    factor = min(0.75, LONGEST / max(image.size))
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def gather(packages: list[Path], output: Path, exclude: set[str]) -> list[str]:
    """Writes the photographs of the packages and their credits; returns the lines of the credits' table."""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for package in packages:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["dpkg-deb", "-x", str(package), place], check=True)
            archives = sorted(path for path in Path(place).rglob("*.rcc") if path.stem in ARCHIVES)
            if not archives:
                raise FileNotFoundError(f"{package}: holds none of {', '.join(ARCHIVES)} (.rcc)")
            for archive in archives:
                for name, image, credit in photographs(archive.read_bytes(), archive.name):
                    if name in exclude:
                        continue
                    file = output / f"{name}_0.jpg"
                    prepare(image).save(file, quality=92, subsampling=0)
                    factor = min(0.75, LONGEST / max(image.size))
                    size = f"{image.width}×{image.height}, {factor:.2f}"
                    rows.append(f"| `{name}` | {credit.author} | {credit.licence} | {credit.source} | {size} |")
    header = ["# Credits", "", "| photograph | author | licence | source | size, factor |", "|---|---|---|---|---|"]
    (output / "CREDITS.md").write_text("\n".join([*header, *rows, ""]), encoding="utf-8")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="DEB", help="files of the package gcompris-qt-data")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the photographs")
    parser.add_argument("--exclude", type=Path, metavar="DIR", help="leave out photographs that lie in this folder")
    options = parser.parse_args()
    present = {path.stem.rsplit("_", 1)[0] for path in options.exclude.rglob("*.jpg")} if options.exclude else set()
    try:
        rows = gather(options.packages, options.output, present)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(rows)} photographs in {options.output}, credits in {options.output / 'CREDITS.md'}")


if __name__ == "__main__":
    main()
