"""Which degraded picture of a tree belongs to which clean one, and what does not fit.

A rule is two patterns (`patterns`):

    'train/rainy_image/{id}_{k}' -> 'train/ground_truth/{id}'

A degraded and a clean picture belong together when the fields of the clean pattern agree.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.list_files import members_of
from data_pipelines.patterns import (
    comparable,
    compiled,
    field_names,
    filled,
    folder_expression,
    parent,
    plain,
    shown,
    without_suffix,
)
from data_pipelines.stored_pictures import Pair, Picture, blocks_in
from data_pipelines.tree import Tree


@dataclass(frozen=True)
class Rule:
    """One published way of laying out a split.

    Attributes:
      lq: pattern of the degraded pictures; '' for a set of clean pictures only.
      gt: pattern of the clean ones; '' where none are published. Its fields all occur in `lq`.
      skip: regular expression; pictures, degraded or clean, whose path contains it do not belong to the split.
      in_order: names do not tell: the n-th of one folder belongs to the n-th of the other.
      blocks: the patterns name MATLAB files (with their suffix) that hold many pictures each.
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
      count: how many pairs (or clean pictures) were published; 0 where that is the user's own matter.
      rules: how it may lie on disk; the first that finds a pair is taken.
      clean: how many clean pictures they share; 0: as many as pairs, or not known.
      expected: field -> all its values; every clean picture has a degraded one for each combination.
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


_UNUSED = "no degraded picture belongs to this clean one"
KINDS = ("missing", "extra", "misnamed", "duplicate", "unreadable", "size", "count", "absent")


@dataclass(frozen=True)
class Found:
    """What a tree holds of one split: its pairs in the order of their names, and its faults."""

    split: Split
    pairs: tuple[Pair, ...]
    faults: tuple[Fault, ...]


def find(tree: Tree, split: Split, *, subset: bool = False, listed: Sequence[str] | None = None) -> Found:
    """The pairs of a split and everything that keeps a picture from being in one.

    Args:
      subset: the tree is a part of the set on purpose; counts and completeness are not checked.
      listed: only pictures whose path ends in one of these names; those not found are missing.

    Raises:
      ValueError: several copies of the split lie in the tree.
    """
    whole = not subset and listed is None
    if split.listed and listed is None:
        listed = tree.names_in(split.listed)
        if listed is None:
            return Found(split, (), (Fault("absent", split.name, f"needs the list {split.listed}"),))
    best: Found | None = None
    for rule in split.rules:
        found = _apply(tree, split, rule, subset, listed)
        if found.pairs:
            best = found
            break
        if best is None and found.faults:
            best = found
    if best is None or not (best.pairs or best.faults):
        looked = dict.fromkeys(shown(rule.lq or rule.gt) for rule in split.rules)
        what = f"nothing like {' or '.join([*looked][:2])}{' and so on' if len(looked) > 2 else ''}"
        return Found(split, (), (Fault("absent", split.name, what),))
    faults = list(best.faults)
    if whole and split.count and len(best.pairs) != split.count:
        quoted = "" if split.confirmed else " (a commonly quoted figure, not confirmed)"
        faults.append(
            Fault(
                "count", split.name, f"{len(best.pairs)} pairs, published {split.count}{quoted}; --subset if on purpose"
            )
        )
    return Found(split, best.pairs, tuple(sorted(faults)))


def _apply(tree: Tree, split: Split, rule: Rule, subset: bool, listed: Sequence[str] | None) -> Found:
    if rule.blocks:
        return _apply_blocks(tree, split, rule)
    root = _root(tree, split, rule)
    if root is None:
        return Found(split, (), ())
    faults: list[Fault] = []
    primary = rule.lq or rule.gt
    within = [path for path in tree.pictures if path.startswith(root)]
    skipped = re.compile(rule.skip) if rule.skip else None
    if skipped:
        within = [path for path in within if not skipped.search(path)]
    degraded = _matches(within, primary, root, faults)
    clean = _matches(within, rule.gt, root, faults) if rule.lq and rule.gt else {}
    folders = [folder_expression(pattern) for pattern in (rule.lq, rule.gt) if pattern]
    known = {*degraded, *clean, *(fault.name for fault in faults)}
    for path in within:
        folder = parent(path[len(root) :])
        if path not in known and any(expression.fullmatch(folder) for expression in folders):
            faults.append(Fault("misnamed", path, f"its name is not of the form {shown(primary).rsplit('/', 1)[-1]}"))
    if listed is not None:
        members, unknown = members_of(listed, degraded, clean)
        degraded = {path: degraded[path] for path in members}
        # Lists that name both pictures of a pair: a clean one that is not there is told by its degraded one.
        partners = compiled(rule.gt) if clean else None
        own = compiled(primary)
        for name, what in unknown.items():
            if not (partners and partners.fullmatch(name) and not own.fullmatch(name)):
                faults.append(Fault("missing", name, what))
    partner: dict[str, str] = {}
    if rule.lq and rule.gt:
        if rule.in_order:
            partner, broken = _in_order(degraded, clean)
        else:
            partner, broken = _by_fields(degraded, clean, rule.gt, unused=listed is None)
        faults += broken
    else:
        partner = dict.fromkeys(degraded, "")
    if split.expected and not subset and listed is None:
        extra, absent = _against_expected(degraded, split, rule, root)
        # A degraded picture that is known to be missing is told once, not once more by its clean one.
        told = {root + filled(rule.gt, fields) for fields in absent.values()} if rule.lq else set()
        faults = [f for f in faults if not (f.what == _UNUSED and without_suffix(f.name) in told)]
        faults += extra
        faults += [Fault("missing", name, "published, but not in the tree") for name in absent]
        unwanted = {fault.name for fault in extra}
        partner = {path: other for path, other in partner.items() if path not in unwanted}
    picture = lambda path: Picture(tree.source / path) if path else None
    pairs = []
    for path in sorted(partner):
        lq, gt = (path, partner[path]) if rule.lq else ("", path)
        pairs.append(Pair(without_suffix(path[len(root) :]), picture(lq), picture(gt)))
    return Found(split, tuple(pairs), tuple(faults))


def _apply_blocks(tree: Tree, split: Split, rule: Rule) -> Found:
    patterns = [pattern for pattern in (rule.lq, rule.gt) if pattern]
    files: dict[str, str] = {}
    for pattern in patterns:
        matching = [path for path in tree.others if compiled(pattern).fullmatch(path)]
        if matching:
            files[pattern] = matching[0]
    faults: list[Fault] = []
    counts: dict[str, int] = {}
    for pattern in patterns if files else ():
        if pattern not in files:
            faults.append(Fault("missing", next(iter(files.values())), f"no file {pattern} beside it"))
            continue
        try:
            counts[pattern] = blocks_in(tree.source / files[pattern])
        except ValueError as error:
            faults.append(Fault("unreadable", files[pattern], str(error)))
    if not faults and len({*counts.values()}) > 1:
        what = f"{counts[rule.gt]} clean blocks for {counts[rule.lq]} degraded ones"
        faults.append(Fault("missing", files[rule.gt], what))
    if faults or not files:
        return Found(split, (), tuple(faults))
    lq, gt, count = tree.source / files[rule.lq], tree.source / files[rule.gt] if rule.gt else None, counts[rule.lq]
    return Found(
        split,
        tuple(
            Pair(f"{lq.stem}/{k:04d}", Picture(lq, k), Picture(gt, k) if gt is not None else None) for k in range(count)
        ),
        (),
    )


def _root(tree: Tree, split: Split, rule: Rule) -> str | None:
    """The folder that the patterns start from, as 'folder/' or ''; None where nothing matches."""
    roots = []
    for pattern in (rule.lq, rule.gt):
        if pattern:
            matches = (compiled(pattern).fullmatch(without_suffix(path)) for path in tree.pictures)
            roots.append({match["root_"] for match in matches if match})
    if not roots or not roots[0]:
        return None
    common = set.intersection(*roots) or roots[0]
    if "" in common or len(common) == 1:
        return "" if "" in common else common.pop()
    copies = ", ".join(str(tree.source / root) for root in sorted(common)[:5])
    raise ValueError(f"several folders hold the split {split.name!r}: {copies}; give one of them as --source")


def _matches(paths: Sequence[str], pattern: str, root: str, faults: list[Fault]) -> dict[str, dict[str, str]]:
    """Path -> fields of the paths that match. Two files of one name are both left out: which is meant?"""
    expression = compiled(pattern)
    found: dict[str, dict[str, str]] = {}
    same_name: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        match = expression.fullmatch(without_suffix(path))
        if match is not None and match["root_"] == root:
            found[path] = {key: value for key, value in match.groupdict().items() if key != "root_"}
            same_name[plain(without_suffix(path))].append(path)
    for several in same_name.values():
        for path in several if len(several) > 1 else ():
            others = ", ".join(other for other in several if other != path)
            faults.append(Fault("duplicate", path, f"the same name as {others}; keep one of them"))
            del found[path]
    return found


def _by_fields(
    degraded: Mapping[str, Mapping[str, str]], clean: Mapping[str, Mapping[str, str]], gt: str, unused: bool
) -> tuple[dict[str, str], list[Fault]]:
    names = field_names(gt)
    key = lambda fields: tuple(plain(fields[name]) for name in names)
    by_key = {key(fields): path for path, fields in clean.items()}
    partner, faults, used = {}, [], set()
    for path, fields in degraded.items():
        wanted = key(fields)
        if wanted in by_key:
            partner[path] = by_key[wanted]
            used.add(wanted)
        else:
            faults.append(Fault("missing", path, f"no clean picture {filled(gt, fields)}"))
    if unused:
        faults += [Fault("missing", path, _UNUSED) for wanted, path in by_key.items() if wanted not in used]
    return partner, faults


def _in_order(degraded: Mapping[str, Any], clean: Mapping[str, Any]) -> tuple[dict[str, str], list[Fault]]:
    if len(degraded) == len(clean):
        return dict(zip(sorted(degraded), sorted(clean), strict=True)), []
    folder = parent(min(degraded, default=""))
    what = f"{len(degraded)} degraded and {len(clean)} clean pictures go by order only; nothing can be paired"
    return {}, [Fault("missing", folder, what)]


def _against_expected(
    degraded: Mapping[str, Mapping[str, str]], split: Split, rule: Rule, root: str
) -> tuple[list[Fault], dict[str, Mapping[str, str]]]:
    """Pictures with values that were never published; name -> fields of published ones that are not there."""
    primary = rule.lq or rule.gt
    swept = list(split.expected)
    shared = [name for name in field_names(rule.gt) if name not in swept]
    allowed = {name: {comparable(value) for value in split.expected[name]} for name in swept}
    groups: dict[tuple[str, ...], set[tuple[Any, ...]]] = defaultdict(set)
    sample: dict[tuple[str, ...], Mapping[str, str]] = {}
    extra = []
    for path, fields in degraded.items():
        wrong = [name for name in swept if comparable(fields[name]) not in allowed[name]]
        if wrong:
            extra.append(Fault("extra", path, f"{wrong[0]} = {fields[wrong[0]]} was never published"))
            continue
        group = tuple(fields[name] for name in shared)
        groups[group].add(tuple(comparable(fields[name]) for name in swept))
        sample.setdefault(group, fields)
    absent: dict[str, Mapping[str, str]] = {}
    for group, there in groups.items():
        for values in itertools.product(*(split.expected[name] for name in swept)):
            if tuple(map(comparable, values)) not in there:
                fields = {**sample[group], **{n: str(v) for n, v in zip(swept, values, strict=True)}}
                absent[root + filled(primary, fields)] = fields
    return extra, absent
