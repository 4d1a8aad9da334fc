"""Test sets in the folders that their authors published, by the layouts of `data_pipelines`."""

from pathlib import Path

from data_pipelines.datasets.layouts import layout_named
from data_pipelines.datasets.pairing import find
from data_pipelines.datasets.records import ImageRef
from data_pipelines.datasets.tree import Tree

NamedPair = tuple[str, ImageRef | None, ImageRef]


def tree_below(data: Path, layout: str) -> Path | None:
    """The folder below `data` that is called like the set, whatever the case and the hyphens; None without one."""
    known = layout_named(layout.partition("/")[0])
    plain = lambda text: "".join(filter(str.isalnum, text.lower()))
    names = {plain(name) for name in (known.name, *known.aliases)}
    if not data.is_dir():
        return None
    return next((path for path in sorted(data.iterdir()) if path.is_dir() and plain(path.name) in names), None)


def pairs_in_tree(root: Path, layout: str, partial: bool = False) -> list[NamedPair]:
    """(name, degraded, clean) of a split, by name.

    Images are named after their files where these names differ, else after their paths with '_' in place of '/'.

    Args:
        root: the unpacked set.
        layout: `NAME/SPLIT` as `data_pipelines.prepare list` shows them.
        partial: leave out what has no partner; else that is an error.

    Raises:
        FileNotFoundError: no such folder, or nothing of that split in it.
        ValueError: images without a partner; names them.
    """
    name, _, wanted = layout.partition("/")
    known = layout_named(name)
    split = next(split for split in known.splits if split.name == wanted)
    found = find(Tree(root), split, subset=True)
    faults = [fault for fault in found.faults if fault.kind != "absent"]
    if faults and not partial:
        shown = ", ".join(f"{fault.name} ({fault.what})" for fault in faults[:10])
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"{root}: {len(faults)} faults in {known.title}, {wanted}: {shown}{more}")
    complete = [(pair.id, pair.lq, pair.gt) for pair in found.pairs if pair.gt is not None]
    if not complete:
        what = "; ".join(fault.what for fault in found.faults) or "no clean images"
        raise FileNotFoundError(f"{root}: nothing of {known.title}, {wanted}: {what}")
    # All by one rule: whether a name is distinguished must not depend on which other images there are.
    short = len({path.rsplit("/", 1)[-1] for path, _, _ in complete}) == len(complete)
    called = lambda path: path.rsplit("/", 1)[-1] if short else path.replace("/", "_")
    return sorted(((called(path), lq, gt) for path, lq, gt in complete), key=lambda pair: pair[0])
