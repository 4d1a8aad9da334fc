"""Photographs from a Debian package with Qt resource archives: format, licences, sizes, credits."""

import io
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from gather_photographs import gather, read_credits  # noqa: E402
from qt_resources import read_rcc  # noqa: E402

README = """Copyright: A. Painter
License: GPLv3
Files:
drawn.webp

Copyright: B. Walker
License: Public Domain
Source: https://example.org/Sea.jpg
Files:
seaShore.webp
tiny.webp
"""


def rcc(files: dict[str, bytes], folder: str, compress: bool) -> bytes:
    """A version 2 archive with one folder under the root."""
    names, data, offsets = b"", b"", {}
    for name in [folder, *files]:
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = [struct.pack(">IHII", 0, 2, 1, 1), struct.pack(">IHII", offsets[folder], 2, len(files), 2)]
    for name, content in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
        nodes.append(struct.pack(">IHII", offsets[name], int(compress), 0, len(data)))
        data += struct.pack(">I", len(stored)) + stored
    tree = b"".join(node + bytes(8) for node in nodes)
    start = 20
    header = b"qres" + struct.pack(">IIII", 2, start, start + len(tree), start + len(tree) + len(data))
    return header + tree + data + names


def photograph(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "WEBP")
    return stored.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    images = {"drawn.webp": (900, 600), "seaShore.webp": (900, 600), "tiny.webp": (300, 200)}
    return {"README": README.encode()} | {name: photograph(*size) for name, size in images.items()}


@pytest.mark.parametrize("compress", [False, True])
def test_files_of_an_archive(files, compress):
    found = dict(read_rcc(rcc(files, "sea", compress)))
    assert found == {f"sea/{name}": content for name, content in files.items()}


def test_other_files_are_refused():
    with pytest.raises(ValueError, match=r"x\.rcc: not a Qt resource archive"):
        read_rcc(b"PK\x03\x04", "x.rcc")
    with pytest.raises(ValueError, match="version 9; versions 1 to 3"):
        read_rcc(b"qres" + struct.pack(">IIII", 9, 0, 0, 0))


def test_only_free_licences_are_credited():
    found = read_credits(README)
    assert found.keys() == {"seaShore.webp", "tiny.webp"}
    assert found["tiny.webp"].author == "B. Walker" and found["tiny.webp"].licence == "Public domain"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_a_package_becomes_photographs_with_credits(files, tmp_path):
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: photos\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: test\n"
    )
    (root / "share").mkdir()
    (root / "share" / "explore_monuments.rcc").write_bytes(rcc(files, "sea", True))
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "photos.deb")], check=True, capture_output=True)
    rows = gather([tmp_path / "photos.deb"], tmp_path / "out", set())
    assert len(rows) == 1 and "B. Walker" in rows[0] and rows[0] in (tmp_path / "out" / "CREDITS.md").read_text()
    with Image.open(tmp_path / "out" / "sea_shore_0.jpg") as image:
        assert image.size == (675, 450) and image.mode == "RGB"
    assert gather([tmp_path / "photos.deb"], tmp_path / "again", {"sea_shore"}) == []
