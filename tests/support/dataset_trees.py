"""Small trees in published layouts, for the tests of preparation."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.datasets.splits import Rule

_SAMPLES = (
    "3",
    "03",
    "003",
    "0003",
    "00003",
    "000003",
    "part1",
    "im_0001",
    "scene003",
    "a3",
    "low",
    "synthetic/part1",
    "haze/part1",
    "hazy/part1",
    "haze",
    "RealBlur-J_ECC",
    "RealBlur-R_BM3D",
    "",
)
_FIELD = re.compile(r"\{(\w+)(?::((?:[^{}]|\{\d+,?\d*\})+))?\}")


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    """An image of noise, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def sample_of(expression: str | None) -> str:
    """A value that a field's expression accepts."""
    if expression is None:
        return "a3"
    first = expression.split("|")[0]
    candidates = (*_SAMPLES, first)
    return next(value for value in candidates if re.fullmatch(expression, value, re.IGNORECASE))


def filled(pattern: str, fields: Mapping[str, str]) -> str:
    """A path (with suffix) that fits the pattern; fields not given take a sample value."""
    name = _FIELD.sub(lambda m: fields.get(m[1]) or sample_of(m[2]), pattern.removeprefix("./"))
    return f"{name}.png"


def write_pair(root: Path, rule: Rule) -> tuple[str, str]:
    """A pair in the layout of a rule; returns the two paths below the root, '' for the side that is not there."""
    known = {m[1]: sample_of(m[2]) for m in _FIELD.finditer(rule.lq)}
    paths = tuple(filled(pattern, known) if pattern else "" for pattern in (rule.lq, rule.gt))
    for seed, path in enumerate(paths):
        if path:
            write_image(root / path, seed)
    return paths
