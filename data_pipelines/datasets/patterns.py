"""Patterns over paths: what a published layout looks like, written down.

A pattern is a path below some folder, without the file's suffix, with fields in braces:

    'train/rainy_image/{id}_{k}'

A field is any run of characters but '/', or what `{name:REGULAR EXPRESSION}` allows. The case of letters does
not matter, nor do folders above the pattern, so that a download may be unpacked one level deeper; a pattern
that begins with './' starts at the source itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from data_pipelines.images import SUFFIXES

_FIELD = re.compile(r"\{(\w+)(?::((?:[^{}]|\{\d+,?\d*\})+))?\}")


def compiled(pattern: str) -> re.Pattern[str]:
    """Matches a path without suffix; its groups are the fields, and `root_` what lies above the pattern."""
    above = "" if pattern.startswith("./") else "(?:.+/)?"
    return re.compile(f"(?P<root_>{above}){_expression(pattern)}", re.IGNORECASE)


def folder_expression(pattern: str) -> re.Pattern[str]:
    """Matches the folder (below the root) in which images of the pattern lie."""
    # Slashes within braces are part of a field's expression.
    masked = _FIELD.sub(lambda match: "x" * len(match[0]), pattern)
    return re.compile(_expression(pattern[: len(parent(masked))], named=False), re.IGNORECASE)


def field_names(pattern: str) -> list[str]:
    return [match[1] for match in _FIELD.finditer(pattern)]


def filled(pattern: str, fields: Mapping[str, str]) -> str:
    """The path that a pattern stands for when its fields have these values."""
    return _FIELD.sub(lambda match: fields[match[1]], pattern.removeprefix("./"))


def shown(pattern: str) -> str:
    """The pattern for display: `{id:[^/_]+}` as {id}, `{top:train|Train100L}` as (train|Train100L)."""
    plain = lambda text: text and re.fullmatch(r"[\w|.-]+", text)
    return _FIELD.sub(lambda m: f"({m[2]})" if plain(m[2]) else "{" + m[1] + "}", pattern.removeprefix("./"))


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def without_suffix(path: str) -> str:
    """The path without the suffix of an image; other suffixes stay (`0001_0.8` is a name)."""
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and f".{suffix}".lower() in SUFFIXES else path


def comparable(value: Any) -> Any:
    """Numbers compare as numbers ('1.0' and 1), words without case."""
    try:
        return float(value)
    except ValueError:
        return plain(str(value))


def plain(name: str) -> str:
    """What is compared of a name: neither case nor how accents are put on letters (macOS keeps them apart)."""
    return unicodedata.normalize("NFC", name).lower()


def _expression(pattern: str, named: bool = True) -> str:
    parts, end = [], 0
    pattern = pattern.removeprefix("./")
    for match in _FIELD.finditer(pattern):
        inside = match[2] or "[^/]+"
        group = f"(?P<{match[1]}>{inside})" if named else f"(?:{inside})"
        parts += [re.escape(pattern[end : match.start()]), group]
        end = match.end()
    return "".join([*parts, re.escape(pattern[end:])])
