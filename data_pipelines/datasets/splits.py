"""What is published of a data set's splits, and what a tree was found to hold of them.

A rule is two patterns (`patterns`):

    'train/rainy_image/{id}_{k}' -> 'train/ground_truth/{id}'

A degraded and a clean image belong together when the fields of the clean pattern agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.datasets.records import Pair


@dataclass(frozen=True)
class Rule:
    """One published way of laying out a split.

    Attributes:
      lq: pattern of the degraded images; '' for a set of clean images only.
      gt: pattern of the clean ones; '' where none are published. Its fields all occur in `lq`.
      skip: regular expression; images, degraded or clean, whose path contains it do not belong to the split.
      in_order: names differ: the n-th of one folder belongs to the n-th of the other, or the one a fixed number on.
      blocks: the patterns name MATLAB files (with their suffix) that hold many images each.
    """

    lq: str
    gt: str
    skip: str = ""
    in_order: bool = False
    blocks: bool = False


@dataclass(frozen=True)
class Split:
    """A part of a set, as published.

    Attributes:
      name: 'train', 'test' ...
      count: how many pairs (or clean images) were published; 0 where that is the user's own matter.
      rules: how it may lie on disk; the first that finds a pair is taken.
      clean: how many clean images they share; 0: as many as pairs, or not known.
      expected: field -> all its values; every clean image has a degraded one for each combination.
      confirmed: the count was confirmed from the publication; otherwise it is what is commonly quoted.
      listed: name of the file in the tree that lists the members of the split.
    """

    name: str
    count: int
    rules: tuple[Rule, ...]
    clean: int = 0
    expected: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    confirmed: bool = True
    listed: str = ""


@dataclass(frozen=True, order=True)
class Fault:
    """Something wrong in a tree: kind is one of `KINDS`, name a path relative to the source."""

    kind: str
    name: str
    what: str


KINDS = ("missing", "extra", "misnamed", "duplicate", "unreadable", "size", "count", "absent")


@dataclass(frozen=True)
class Found:
    """What a tree holds of one split: its pairs in the order of their names, and its faults."""

    split: Split
    pairs: tuple[Pair, ...]
    faults: tuple[Fault, ...]
