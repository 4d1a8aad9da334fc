"""Random-access sources for grain: folders of clean photographs and folders of degraded/clean pairs.

A source is picklable and has `__len__` and `__getitem__`. Elements hold the pixels as stored (uint8 or
uint16), so that a crop is taken before anything is converted; `images.as_float` gives [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.patterns import plain
from data_pipelines.images import SUFFIXES, decode_image

Folder = str | Path


class PixelCache:
    """Decoded pixels by index, up to a bound.

    Filled in the order of access and never emptied: access is uniformly random, where a fixed part of the
    set is as good as any replacement rule. It is left out when the object is sent to another process.

    Args:
      megabytes: how many decoded pixels to keep (10^6 bytes); 0 keeps none.
    """

    def __init__(self, megabytes: float = 0):
        self._megabytes = megabytes
        self._room = megabytes * 1e6
        self._kept: dict[Hashable, np.ndarray] = {}

    def fetch(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The pixels of `key`; read-only where they are kept."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        pixels = decode()
        # Two threads may decode the same image once; the bound is then passed by an image at most.
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            pixels.flags.writeable = False
            self._kept[key] = pixels
        return pixels

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelCache, (self._megabytes,)


class ImageFiles:
    """Image files by index, decoded on access.

    Args:
      paths: the files.
      cache_megabytes: see `PixelCache`.
    """

    def __init__(self, paths: Sequence[Path], cache_megabytes: float = 0):
        self.paths = tuple(paths)
        self._cache = PixelCache(cache_megabytes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Pixels, uint8 or uint16 (height, width, 3); read-only where they come from the cache."""
        return self._cache.fetch(index, lambda: decode_image(self.paths[index]))


class ImageFolder:
    """Clean photographs of one or more folders; element: {'name': file stem, 'image': pixels}.

    Args:
      folders: a folder or several; files are sorted by name within each, other files are passed over.
      cache_megabytes: see `ImageFiles`.

    Raises:
      FileNotFoundError: a folder does not exist.
      ValueError: a folder holds no image.
    """

    def __init__(self, folders: Folder | Sequence[Folder], cache_megabytes: float = 0):
        if isinstance(folders, str | Path):
            folders = [folders]
        self.files = ImageFiles([path for f in folders for path in image_paths(f)], cache_megabytes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"name": self.files.paths[index].stem, "image": self.files[index]}


class PairedFolders:
    """Degraded images and their clean versions; element: {'name': degraded stem, 'lq': pixels, 'gt':
    pixels}.

    Args:
      lq: folder of degraded images.
      gt: folder of clean images. Several degraded images may share one.
      pairing: how the stem of a degraded image leads to the stem of its clean one:
        'stem' the same stem (suffixes, case and the form of accents may differ);
        'prefix' the part before the first '_' (the RESIDE layout, `0001_0.8_0.2` -> `0001`);
        'PATTERN=>REPLACEMENT' a regular expression replaced in the stem (`^rain=>norain`).
      cache_megabytes: see `ImageFiles`; for each of the two folders.

    Raises:
      FileNotFoundError: a folder does not exist.
      ValueError: no images, an unknown rule, two files of one stem, or files without a partner (lists
        them).
      On access: ValueError where the two sizes differ or a file cannot be read.
    """

    def __init__(self, lq: Folder, gt: Folder, pairing: str = "stem", cache_megabytes: float = 0):
        degraded, clean = _by_stem(lq), _by_stem(gt)
        partner = {name: plain(clean_stem(path.stem, pairing)) for name, path in degraded.items()}
        unpaired = [str(degraded[stem]) for stem, wanted in partner.items() if wanted not in clean]
        used = set(partner.values())
        unpaired += [str(path) for stem, path in clean.items() if stem not in used]
        if unpaired:
            more = f" and {len(unpaired) - 20} more" if len(unpaired) > 20 else ""
            raise ValueError(
                f"{len(unpaired)} images in {lq} and {gt} have no partner under the pairing {pairing!r}: "
                f"{', '.join(unpaired[:20])}{more}; rename them, take them out or change the pairing"
            )
        self.lq = ImageFiles(list(degraded.values()), cache_megabytes)
        self.gt = ImageFiles(list(clean.values()), cache_megabytes)
        position = {stem: k for k, stem in enumerate(clean)}
        self._gt_index = tuple(position[partner[stem]] for stem in degraded)

    def __len__(self) -> int:
        return len(self.lq)

    def __getitem__(self, index: int) -> dict[str, Any]:
        lq, gt = self.lq[index], self.gt[self._gt_index[index]]
        path = self.lq.paths[index]
        if lq.shape != gt.shape:
            raise ValueError(
                f"{path} is {lq.shape[1]}x{lq.shape[0]} but its clean version "
                f"{self.gt.paths[self._gt_index[index]]} is {gt.shape[1]}x{gt.shape[0]}; they must agree"
            )
        return {"name": path.stem, "lq": lq, "gt": gt}


def bundled_photos(split: str) -> Path:
    """The folder of the photographs that come with the project; `split` is 'train' or 'heldout'."""
    if split not in ("train", "heldout"):
        raise ValueError(f"the bundled photographs are split in 'train' and 'heldout', not {split!r}")
    return Path(__file__).parents[1] / "photos" / split


def image_paths(folder: Folder) -> list[Path]:
    """The image files directly in a folder, sorted by name.

    Raises FileNotFoundError where there is no such folder, ValueError where it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"no images in {folder} (looked for {', '.join(SUFFIXES)})")
    return paths


def clean_stem(stem: str, pairing: str) -> str:
    """The stem of the clean image that belongs to a degraded one; rules as in `PairedFolders`."""
    if pairing == "stem":
        return stem
    if pairing == "prefix":
        return stem.split("_", 1)[0]
    pattern, arrow, replacement = pairing.partition("=>")
    if not arrow:
        raise ValueError(f"unknown pairing {pairing!r}: give 'stem', 'prefix' or 'PATTERN=>REPLACEMENT'")
    try:
        return re.sub(pattern, replacement, stem)
    except re.error as error:
        raise ValueError(f"the pairing {pairing!r} is no regular expression: {error}") from error


def _by_stem(folder: Folder) -> Mapping[str, Path]:
    """The images of a folder by what is compared of their stems."""
    paths: dict[str, Path] = {}
    for path in image_paths(folder):
        if (name := plain(path.stem)) in paths:
            raise ValueError(f"{paths[name]} and {path} have the same stem; keep one of them")
        paths[name] = path
    return paths
