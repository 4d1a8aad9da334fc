"""Which degraded image of a tree belongs to which clean one, and what does not fit."""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.datasets.file_lists import members_of
from data_pipelines.datasets.patterns import (
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
from data_pipelines.datasets.records import ImageRef, Pair, blocks_in
from data_pipelines.datasets.splits import Fault, Found, Rule, Split
from data_pipelines.datasets.tree import Tree

_UNUSED = "no degraded image belongs to this clean one"


def find(tree: Tree, split: Split, *, subset: bool = False, listed: Sequence[str] | None = None) -> Found:
    """The pairs of a split and everything that keeps an image from being in one.

    Args:
      subset: the tree is a part of the set on purpose; counts and completeness are not checked.
      listed: only images whose path ends in one of these names; those not found are missing.

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
        # The rule that explains most of the tree gives the best description of its problems.
        if found.faults and (best is None or len(found.faults) < len(best.faults)):
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
    skipped = re.compile(rule.skip) if rule.skip else None
    images = [path for path in tree.images if not (skipped and skipped.search(path))]
    within = [path for path in images if path.startswith(root)]
    degraded = _matches(within, primary, root, faults)
    clean = _matches(within, rule.gt, root, faults) if rule.lq and rule.gt else {}
    known = {*degraded, *clean, *(fault.name for fault in faults)}
    strays = _strays([path for path in images if path not in known], rule, root)
    faults += [fault for fault in strays if listed is None or fault.kind == "misnamed"]
    if listed is not None:
        members, unknown = members_of(listed, degraded, clean)
        degraded = {path: degraded[path] for path in members}
        # Lists that name both images of a pair: a missing clean image is reported by its degraded one.
        partners = compiled(rule.gt) if clean else None
        own = compiled(primary)
        for name, what in unknown.items():
            if not (partners and partners.fullmatch(name) and not own.fullmatch(name)):
                faults.append(Fault("missing", name, what))
    partner: dict[str, str] = {}
    if rule.lq and rule.gt:
        if rule.in_order:
            partner, broken = _in_order(degraded, clean, split.count)
        else:
            partner, broken = _by_fields(degraded, clean, rule.gt, unused=listed is None)
        faults += broken
    else:
        partner = dict.fromkeys(degraded, "")
    if split.expected and not subset and listed is None:
        extra, absent = _against_expected(degraded, split, rule, root)
        # A degraded image that is known to be missing is reported once, not again by its clean one.
        reported = {root + filled(rule.gt, fields) for fields in absent.values()} if rule.lq else set()
        faults = [f for f in faults if not (f.what == _UNUSED and without_suffix(f.name) in reported)]
        faults += extra
        faults += [Fault("missing", name, "published, but not in the tree") for name in absent]
        unwanted = {fault.name for fault in extra}
        partner = {path: other for path, other in partner.items() if path not in unwanted}
    image = lambda path: ImageRef(tree.source / path) if path else None
    pairs = []
    for path in sorted(partner):
        lq, gt = (path, partner[path]) if rule.lq else ("", path)
        pairs.append(Pair(without_suffix(path[len(root) :]), image(lq), image(gt)))
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
            faults.append(Fault("missing", next(iter(files.values())), f"no matching file {pattern}"))
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
            Pair(f"{lq.stem}/{k:04d}", ImageRef(lq, k), ImageRef(gt, k) if gt is not None else None)
            for k in range(count)
        ),
        (),
    )


def _root(tree: Tree, split: Split, rule: Rule) -> str | None:
    """The folder that the patterns start from, as 'folder/' or ''; None where nothing matches."""
    roots = []
    for pattern in (rule.lq, rule.gt):
        if pattern:
            matches = (compiled(pattern).fullmatch(without_suffix(path)) for path in tree.images)
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


def _strays(paths: Sequence[str], rule: Rule, root: str) -> list[Fault]:
    """Images that lie among those of the split, or like those of the split, and are not of it."""
    patterns = [pattern for pattern in (rule.lq, rule.gt) if pattern]
    folders = [folder_expression(pattern) for pattern in patterns]
    nested = [folder for pattern, folder in zip(patterns, folders, strict=True) if "/" in pattern.removeprefix("./")]
    faults = []
    for path in paths:
        folder = parent(path[len(root) :])
        inside = path.startswith(root)
        if inside and any(expression.fullmatch(folder) for expression in folders):
            what = f"its name is not of the form {shown(patterns[0]).rsplit('/', 1)[-1]}"
            faults.append(Fault("misnamed", path, what))
        elif inside and any(expression.fullmatch(above) for expression in nested for above in _above(folder)):
            faults.append(Fault("extra", path, "lies in a folder below the images of the split"))
        elif any(compiled(pattern).fullmatch(without_suffix(path)) for pattern in patterns):
            faults.append(Fault("extra", path, f"of another copy of the split than the one in '{root or '.'}'"))
    return faults


def _above(folder: str) -> list[str]:
    """Every folder that holds this one."""
    parts = folder.split("/")
    return ["/".join(parts[:k]) for k in range(1, len(parts))]


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
            faults.append(Fault("missing", path, f"no clean image {filled(gt, fields)}"))
    if unused:
        faults += [Fault("missing", path, _UNUSED) for wanted, path in by_key.items() if wanted not in used]
    return partner, faults


def _in_order(
    degraded: Mapping[str, Any], clean: Mapping[str, Any], published: int
) -> tuple[dict[str, str], list[Fault]]:
    """Pairs by order, where nothing is missing or the numbers of the names leave no doubt.

    Equal counts alone prove nothing: a degraded and another clean image may be missing.
    """
    if len(degraded) == len(clean) == published:
        return dict(zip(sorted(degraded), sorted(clean), strict=True)), []
    numbered = [{_number(path): path for path in paths} for paths in (degraded, clean)]
    numbers, others = (sorted(number for number in side if number is not None) for side in numbered)
    # How far the images that follow and precede a degraded one are from it: what most agree on, if one distance.
    steps: Counter[int] = Counter()
    for number in numbers:
        place = bisect.bisect(others, number)
        steps.update(other - number for other in others[max(place - 1, 0) : place + 1])
    (step, agreeing), (_, doubt) = [*steps.most_common(2), (0, 0), (0, 0)][:2]
    if 2 * agreeing < len(numbers) or 2 * doubt > agreeing:
        what = f"{len(degraded)} degraded and {len(clean)} clean images go by order only, and {published} are published"
        faults = [Fault("missing", parent(min([*degraded, *clean])), f"{what}; nothing can be paired")]
        in_turn = sorted([*((n, 0) for n in numbers), *((n, 1) for n in others)])
        for (number, side), (after, next_side) in itertools.pairwise(in_turn):
            if side == next_side:
                what = f"no {('clean', 'degraded')[side]} image between this one and {numbered[side][after]}"
                faults.append(Fault("missing", numbered[side][number], what))
        return {}, faults
    partner = {
        path: numbered[1][number + step] for number, path in numbered[0].items()
        if number is not None and number + step in numbered[1]
    }  # fmt: skip
    used = {*partner.values()}
    faults = [
        Fault("missing", path, f"no clean image with the number of this one {step:+d}, as all others have")
        for path in degraded if path not in partner
    ]  # fmt: skip
    return partner, faults + [Fault("missing", path, _UNUSED) for path in clean if path not in used]


def _number(path: str) -> int | None:
    """The last number of an image's name."""
    digits = re.findall(r"\d+", without_suffix(path).rpartition("/")[2])
    return int(digits[-1]) if digits else None


def _against_expected(
    degraded: Mapping[str, Mapping[str, str]], split: Split, rule: Rule, root: str
) -> tuple[list[Fault], dict[str, Mapping[str, str]]]:
    """Images with values that were never published; name -> fields of published ones that are not there."""
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
