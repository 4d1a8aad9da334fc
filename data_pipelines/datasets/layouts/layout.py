"""What is known of a published data set, and the shapes that many of them share."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipelines.datasets.splits import Rule, Split


@dataclass(frozen=True)
class Layout:
    """One published set (or `pairs` and `clean`, the user's own).

    Attributes:
      name: as typed; case, '-' and '_' do not matter.
      title: name in messages and reports.
      task: what its degraded images suffer from; of `tasks.TASKS` where it is one of those.
      splits: see `splits.Split`.
      size: of the download, roughly.
      licence: in short.
      home: where to get it.
      aliases: other names it goes by.
    """

    name: str
    title: str
    task: str
    splits: tuple[Split, ...]
    size: str = ""
    licence: str = "none stated"
    home: str = ""
    aliases: tuple[str, ...] = ()


INPUT_TARGET = (("input", "target"), ("input", "gt"))


def same_name(top: str, *folders: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules for images of one name in two folders below `top` ('' or 'folder/')."""
    return tuple(Rule(f"{top}{lq}/{{name}}", f"{top}{gt}/{{name}}") for lq, gt in folders)


def clean_only(name: str, count: int, *patterns: str, skip: str = "", **more) -> Split:
    """A split of clean images; `skip` as in `splits.Rule`."""
    return Split(name, count, tuple(Rule("", pattern, skip) for pattern in patterns), **more)
