"""Command: a published data set, as downloaded, to checked and complete shards.

    python -m data_pipelines.prepare list                                   what is known
    python -m data_pipelines.prepare check gopro --source=/data/GOPRO_Large      verify, write nothing
    python -m data_pipelines.prepare gopro --source=/data/GOPRO_Large --output=/data/prepared/gopro
    python -m data_pipelines.prepare pairs --source=/data/mine --lq=foggy --gt=clear --task=dehaze --output=...
    python -m data_pipelines.prepare clean --source=/data/photos --output=...
    python -m data_pipelines.prepare gopro --source=/data/GOPRO_Large --format=tfds --output=~/tensorflow_datasets
    python -m data_pipelines.prepare verify /data/prepared/gopro            read back, compare all hashes
    python -m data_pipelines.prepare plan promptir                          what a mixture amounts to

Images that are missing, extra, misnamed, unreadable or of another size than their partner are listed by name
and left out; with --strict they refuse the whole. The source is never written. The output appears complete or
not at all, and a run that was interrupted is taken up again by the same command (with --format=tfds: started again).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence

from data_pipelines.datasets import mixture_plan
from data_pipelines.datasets.file_lists import read_list
from data_pipelines.datasets.layouts import LAYOUTS, Layout, layout_named
from data_pipelines.datasets.pack import SHARD_MEGABYTES, Refused, check_images, free_space_problem, prepare
from data_pipelines.datasets.pairing import find
from data_pipelines.datasets.patterns import compiled, shown
from data_pipelines.datasets.shards import check_shards
from data_pipelines.datasets.splits import Fault, Found, Rule, Split
from data_pipelines.datasets.tree import Tree
from data_pipelines.messages import print_line
from data_pipelines.sources.tfds import build

_COMMANDS = ("list", "check", "verify", "plan")
_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; a mistake ends the program with one line and exit code 2, a refusal with 1."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and arguments[0] in _COMMANDS else "prepare"
    if command == "plan":
        return mixture_plan.main(arguments)
    options = _parser(command).parse_args(arguments)
    try:
        if command == "list":
            print(describe(options.name))
        elif command == "verify":
            print(f"{check_shards(options.folder)} records are what was written")
        else:
            _run(command, options)
    except Refused as refusal:
        print_line(refusal, error=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        print_line(f"error: {error}", error=True)
        raise SystemExit(2) from None


def describe(name: str = "") -> str:
    """The known sets as a table, or all about one of them."""
    if name:
        return _details(layout_named(name))
    rows = [("name", "task", "pairs", "size", "licence", "home page")]
    for layout in LAYOUTS:
        counts = ", ".join(
            f"{s.name} {s.count}{'' if s.confirmed else '?'}" if s.count else "any" for s in layout.splits
        )
        rows.append((layout.name, layout.task or "any", counts, layout.size, layout.licence, layout.home))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "?: commonly quoted, not confirmed. 'prepare list NAME' shows the folders."])


def report(found: Sequence[Found], shown_of_each: int = _SHOWN) -> tuple[str, Counter[str]]:
    """What to print of a tree, and how many faults there are of each kind; so many of each are named."""
    lines = []
    counted: Counter[str] = Counter()
    for part in found:
        published = f" of {part.split.count}" if part.split.count else ""
        lines.append(f"{part.split.name}: {len(part.pairs)}{published} pairs")
        counted += Counter(fault.kind for fault in part.faults)
        lines += _listed(part.faults, shown_of_each)
    return "\n".join(lines), counted


def _listed(faults: Sequence[Fault], shown_of_each: int) -> list[str]:
    """A line for each fault, but for no more than so many of each kind."""
    lines = []
    for kind in dict.fromkeys(fault.kind for fault in faults):
        alike = [fault for fault in faults if fault.kind == kind]
        lines += [f"  {kind}: {fault.name}: {fault.what}" for fault in alike[:shown_of_each]]
        if len(alike) > shown_of_each:
            lines.append(f"  {kind}: and {len(alike) - shown_of_each} more (--all-names lists them)")
    return lines


def _run(command: str, options: argparse.Namespace) -> None:
    shown_of_each = sys.maxsize if options.all_names else _SHOWN
    layout = _chosen(options)
    tree = Tree(options.source)
    listed = read_list(options.list) if options.list else None
    found = [find(tree, split, subset=options.subset, listed=listed) for split in layout.splits]
    if all(not part.pairs and {fault.kind for fault in part.faults} == {"absent"} for part in found):
        looked = "; ".join(f"{part.split.name}: {part.faults[0].what}" for part in found)
        raise ValueError(f"{options.source} holds no {layout.name} ({looked}); see 'prepare list {layout.name}'")
    workers = options.workers or os.cpu_count() or 1
    if command == "check":
        found = check_images(found, tree, workers)
    text, counted = report(found, shown_of_each)
    print_line(text)
    refusing = _refusing(found, options.split or ())
    verdict = ", ".join(f"{number} {kind}" for kind, number in sorted(counted.items())) or "complete"
    print_line(f"{layout.name}: {verdict}")
    if options.strict and refusing:
        raise Refused(f"--strict: {len(refusing)} faults, nothing was written")
    if command == "check":
        if refusing:
            raise SystemExit(1)
        return
    problem = free_space_problem(found, options.output)
    if problem:
        raise ValueError(problem)
    if options.format == "tfds":
        name = options.tfds_name or layout.name
        task = options.task or layout.task
        kept, refused = build(layout, task, found, tree, options.output, name, strict=options.strict, workers=workers)
        for line in [*_listed(refused, shown_of_each), *(f"{split}: {count} records" for split, count in kept.items())]:
            print_line(line)
        print(f"written: tfds:restoration_pairs/{name} in {options.output} (TFDS_DATA_DIR)")
        return
    manifest = prepare(
        layout,
        options.task or layout.task,
        found,
        tree,
        options.output,
        strict=options.strict,
        workers=workers,
        shard_megabytes=options.shard_megabytes,
    )
    for name, split in manifest["splits"].items():
        # The others were reported above; these were found only by reading.
        known = {part.split.name: part.faults for part in found}[name]
        read = [fault for fault in (Fault(**fields) for fields in split["left_out"]) if fault not in known]
        for line in _listed(read, shown_of_each):
            print_line(line)
        left_out = Counter(fault["kind"] for fault in split["left_out"])
        counted_out = "".join(f", {number} {kind}" for kind, number in sorted(left_out.items()))
        print(f"{name}: {split['records']} records in {len(split['shards'])} shards{counted_out}")
    print(f"written: {options.output}")


def _refusing(found: Sequence[Found], asked_for: Sequence[str]) -> list[Fault]:
    """What --strict refuses: every fault except unconfirmed counts and splits that were not requested."""
    mild = lambda fault, split: (
        (fault.kind == "count" and not split.confirmed) or (fault.kind == "absent" and split.name not in asked_for)
    )
    return [fault for part in found for fault in part.faults if not mild(fault, part.split)]


def _chosen(options: argparse.Namespace) -> Layout:
    """The layout with the user's own folders, and the splits asked for."""
    layout = layout_named(options.name)
    if layout.name == "pairs":
        if not options.task:
            raise ValueError("pairs: say what the degraded images suffer from with --task=NAME")
        rule = own_rule(options.lq, options.gt, options.pairing)
        layout = dataclasses.replace(layout, splits=(Split("train", 0, (rule,)),))
    if options.split:
        known = [split.name for split in layout.splits]
        unknown = sorted(set(options.split) - set(known))
        if unknown:
            raise ValueError(f"{layout.name} has the splits {', '.join(known)}, not {', '.join(unknown)}")
        splits = tuple(split for split in layout.splits if split.name in options.split)
        layout = dataclasses.replace(layout, splits=splits)
    return layout


def own_rule(lq: str, gt: str, pairing: str) -> Rule:
    """The user's own two folders; folders below them are part of an image's name. ValueError for a bad `pairing`."""
    if pairing == "stem":
        return Rule(f"./{lq}/{{name:.+}}", f"./{gt}/{{name:.+}}")
    if pairing == "prefix":
        name = "{folder:(?:.+/)?}{id:[^/_]+}"
        return Rule(f"./{lq}/{name}_{{rest}}", f"./{gt}/{name}")
    degraded, arrow, clean = pairing.partition("=>")
    if not arrow:
        raise ValueError(
            f"--pairing: 'stem', 'prefix' or 'PATTERN=>PATTERN' as in '{{n}}_rain=>{{n}}_clean', not {pairing!r}"
        )
    rule = Rule(f"./{lq}/{degraded}", f"./{gt}/{clean}")
    try:
        fields = {pattern: {*compiled(pattern).groupindex} for pattern in (rule.lq, rule.gt)}
    except re.error as error:
        raise ValueError(f"--pairing={pairing}: {error}") from None
    if unknown := fields[rule.gt] - fields[rule.lq]:
        raise ValueError(f"--pairing={pairing}: {{{min(unknown)}}} is a field of the clean pattern only")
    return rule


def _details(layout: Layout) -> str:
    lines = [
        f"{layout.name}: {layout.title}",
        f"  task {layout.task or 'any'}, {layout.size or 'any size'}, licence: {layout.licence}",
    ]
    lines += [f"  {layout.home}"] if layout.home else []
    for split in layout.splits:
        confirmed = "" if split.confirmed else " (commonly quoted, not confirmed)"
        clean = f" of {split.clean} clean images" if split.clean else ""
        lines.append(f"  {split.name}: {split.count or 'any number of'} pairs{clean}{confirmed}")
        lines += [f"    by the list {split.listed}"] if split.listed else []
        rules = (" -> ".join(shown(p) for p in (rule.lq, rule.gt) if p) for rule in split.rules)
        lines += [f"    {rule}" for rule in dict.fromkeys(rules)]
    return "\n".join(lines)


def _parser(command: str) -> argparse.ArgumentParser:
    usage = {"prepare": "python -m data_pipelines.prepare"}.get(command, f"python -m data_pipelines.prepare {command}")
    parser = argparse.ArgumentParser(usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if command == "list":
        parser.add_argument("name", nargs="?", default="", help="all about this set")
        return parser
    if command == "verify":
        parser.add_argument("folder", help="of prepared data")
        return parser
    parser.add_argument("name", help="a set that 'prepare list' shows")
    parser.add_argument("--source", required=True, help="folder of the unpacked download; never written")
    if command == "prepare":
        parser.add_argument("--output", required=True, help="folder to make (--format=tfds: the TFDS data folder)")
        parser.add_argument("--format", choices=("shards", "tfds"), default="shards", help="tfds: a TFDS data set")
        parser.add_argument("--tfds-name", default="", help="tfds: CONFIG of restoration_pairs/CONFIG")
        parser.add_argument("--shard-megabytes", type=float, default=SHARD_MEGABYTES, help="size of a shard")
    parser.add_argument("--strict", action="store_true", help="any fault refuses the whole")
    parser.add_argument("--split", action="append", help="only this split; may be given several times")
    parser.add_argument("--subset", action="store_true", help="the tree holds a part of the set on purpose")
    parser.add_argument("--list", help="text file of names: only these images")
    parser.add_argument("--workers", type=int, default=0, help="threads; 0: one for each core")
    parser.add_argument("--all-names", action="store_true", help="list every fault, not the first of each kind")
    parser.add_argument("--task", default="", help="task to record instead of the set's own")
    parser.add_argument("--lq", default="lq", help="pairs: folder of degraded images in the source")
    parser.add_argument("--gt", default="gt", help="pairs: folder of clean ones")
    parser.add_argument("--pairing", default="stem", help="pairs: stem, prefix, or PATTERN=>PATTERN")
    return parser


if __name__ == "__main__":
    main()
