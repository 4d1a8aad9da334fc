"""Reads the files inside a Qt resource archive (.rcc).

The format (Qt's `rcc` tool, versions 1 to 3; all numbers big-endian): the magic `qres`, the version and the
offsets of tree, data and names, each 4 bytes; from version 3 also 4 bytes of flags. A node of the tree has 14 bytes,
22 from version 2 (with a time of change): the offset of its name, 2 bytes of flags (1 zlib, 2 folder, 4 zstd), then
for a folder the number of its children and the index of the first, for a file 4 bytes of locale and the offset of
its data. A name is its length in UTF-16 units (2 bytes), a hash (4 bytes) and the units; data is its length and the
bytes, where zlib data begins with the unpacked length (4 bytes).
"""

import struct
import zlib
from collections.abc import Iterator

ZLIB, FOLDER, ZSTD = 1, 2, 4


def read_rcc(archive: bytes, where: str = "archive") -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file in the archive, depth first.

    Raises:
        ValueError: no Qt resource archive, a version beyond 3, or a file compressed with Zstandard.
    """
    if archive[:4] != b"qres":
        raise ValueError(f"{where}: not a Qt resource archive (it does not begin with 'qres')")
    version, tree, data, names = struct.unpack_from(">IIII", archive, 4)
    if not 1 <= version <= 3:
        raise ValueError(f"{where}: a Qt resource archive of version {version}; versions 1 to 3 can be read")
    size = 14 if version == 1 else 22

    def visit(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * size
        name, flags = struct.unpack_from(">IH", archive, node)
        path = folder + _name(archive, names + name) if index else ""
        if flags & FOLDER:
            count, first = struct.unpack_from(">II", archive, node + 6)
            for child in range(first, first + count):
                yield from visit(child, f"{path}/" if path else "")
            return
        (start,) = struct.unpack_from(">I", archive, node + 10)
        (length,) = struct.unpack_from(">I", archive, data + start)
        content = archive[data + start + 4 : data + start + 4 + length]
        if flags & ZSTD:
            raise ValueError(f"{where}: {path} is compressed with Zstandard, which is not supported")
        yield path, zlib.decompress(content[4:]) if flags & ZLIB else content

    return visit(0, "")


def _name(archive: bytes, offset: int) -> str:
    (length,) = struct.unpack_from(">H", archive, offset)
    return archive[offset + 6 : offset + 6 + 2 * length].decode("utf-16-be")
