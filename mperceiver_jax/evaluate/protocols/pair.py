"""One image of a protocol, and the digest that identifies a list of them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.datasets.records import ImageRef


@dataclass(frozen=True)
class Pair:
    """One image to measure.

    Attributes:
        set: name of its test set.
        name: stem of its degraded image (of its clean one where noise is added); outputs carry it.
        gt: the clean image.
        lq: the degraded image; None where noise is added, or where only outputs are compared.
        output: what another system made of it; None where our model restores it.
        size: (height, width) at which it is restored and measured, border included.
        noise: (sigma, how many values of the protocol's noise stream come before it).
    """

    set: str
    name: str
    gt: ImageRef
    lq: ImageRef | None
    output: Path | None
    size: tuple[int, int]
    noise: tuple[float, int] | None = None

    @property
    def key(self) -> str:
        return f"{self.set}/{self.name}"

    def file_signature(self) -> list[int]:
        """Sizes and times of the files it is measured from; a change makes an earlier result void."""
        files = [self.gt.path, self.lq.path if self.lq else None, self.output]
        stats = [path.stat() for path in files if path is not None]
        return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def list_hash(images: Iterable[Pair]) -> str:
    """Which images, at which sizes, with which noise: equal for equal lists on any machine."""
    line = lambda p: " ".join(map(str, (p.key, f"{p.size[0]}x{p.size[1]}", *(p.noise or ()))))
    return hashlib.sha256("".join(f"{line(p)}\n" for p in images).encode()).hexdigest()[:16]
