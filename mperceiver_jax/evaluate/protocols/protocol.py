"""Protocols: which test sets, how they are scored, what others published. Data, in `data/*.toml`."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mperceiver_jax.evaluate.protocols.preprocessing import Preprocessing

AVERAGE = "average"


@dataclass(frozen=True)
class SetOfPairs:
    """One test set, one column of the table.

    Attributes:
        name: of the column, and of the folder of outputs.
        task: the degradation of its images.
        gt: folders that may hold the clean images, below the data folder; the first that exists is taken.
        lq: the same for the degraded ones; none where they are made by adding noise.
        pairing: rules that may lead from a degraded image's name to its truth (`data_pipelines.sources.folders`);
            the first that fits every image is taken.
        noise: sigma, in levels of 8 bits, of the noise that is added to the clean images.
        listed: files with the names of the test images, one a line; where one exists others are left out.
        layout: `NAME/SPLIT` of `data_pipelines.datasets.layouts`, by which a published tree is read where none of the
            folders is there.
        count: images in the published set.
        group: sets of one group are averaged together.
    """

    name: str
    task: str
    gt: tuple[str, ...]
    lq: tuple[str, ...] = ()
    pairing: tuple[str, ...] = ("stem",)
    noise: float | None = None
    listed: tuple[str, ...] = ()
    layout: str | None = None
    count: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Peer:
    """What somebody published: {metric: {column: value}}, and where (a key of the protocol's sources)."""

    name: str
    source: str
    figures: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Protocol:
    """Everything a figure depends on, and what it may be compared with."""

    name: str
    title: str
    about: str
    traps: tuple[str, ...]
    preprocessing: Preprocessing
    sets: tuple[SetOfPairs, ...]
    peers: tuple[Peer, ...] = ()
    sources: Mapping[str, str] | None = None
    noise_seed: int = 0

    @property
    def averages(self) -> dict[str, list[str]]:
        """Name of an average -> the sets it is over."""
        groups: dict[str, list[str]] = {}
        for one in self.sets:
            groups.setdefault(AVERAGE if one.group is None else f"{AVERAGE} of {one.group}", []).append(one.name)
        return {name: members for name, members in groups.items() if len(members) > 1}

    @property
    def columns(self) -> list[str]:
        return [one.name for one in self.sets] + list(self.averages)


def protocol_names() -> list[str]:
    """The protocols that come with the library."""
    return sorted(Path(file.name).stem for file in _folder().iterdir() if file.name.endswith(".toml"))


def load_protocol(name: str) -> Protocol:
    """A protocol by its name, or from the user's own .toml file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, or a file that is not as `data/*.toml`; names the problem.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no protocol file at {path}")
        try:
            text, name = path.read_text(), path.stem
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file ({error})") from None
    elif name in protocol_names():
        text = (_folder() / f"{name}.toml").read_text()
    else:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(protocol_names())}, or name a .toml file")
    try:
        return _protocol(name, tomllib.loads(text))
    except KeyError as error:
        raise ValueError(f"protocol {name}: the entry {error} is missing") from error
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"protocol {name}: {error}") from error


def describe(protocol: Protocol) -> str:
    """The protocol as text: sets, scoring, averages, traps and published figures."""
    lines = [
        f"{protocol.name}: {protocol.title}",
        f"  {protocol.about}",
        f"  scored: {protocol.preprocessing.describe()}",
    ]
    lines.append(f"  metrics: {', '.join(protocol.preprocessing.metrics)}; mean of the images' values per set")
    for one in protocol.sets:
        count = f", {one.count} images" if one.count else ""
        if one.noise is None:
            where = f"{one.lq[0]} -> {one.gt[0]} ({' or '.join(one.pairing)})"
        else:
            where = f"{one.gt[0]} + noise of sigma {one.noise:g}, stream of seed {protocol.noise_seed}, 8 bits"
        tree = f"; or the published tree in {one.layout.partition('/')[0]}/" if one.layout else ""
        lines.append(f"  set {one.name} ({one.task}{count}): {where}{tree}")
    for name, members in protocol.averages.items():
        lines.append(f"  {name}: unweighted mean of {len(members)} sets")
    lines += [f"  trap: {trap}" for trap in protocol.traps]
    if protocol.peers:
        lines.append(f"  published: {len(protocol.peers)} systems, from")
        lines += [f"    {key}: {source}" for key, source in (protocol.sources or {}).items()]
    return "\n".join(lines)


def _folder() -> Any:
    return files("mperceiver_jax.evaluate.protocols") / "data"


def _protocol(name: str, data: Mapping[str, Any]) -> Protocol:
    data = dict(data)
    preprocessing = _made(Preprocessing, data.pop("preprocessing"))
    sets = tuple(_made(SetOfPairs, entry) for entry in data.pop("sets"))
    if len({one.name for one in sets}) < len(sets) or not sets:
        raise ValueError("sets need names of their own, at least one")
    peers = data.pop("peers", [])
    bare = _made(Protocol, data | {"name": name, "preprocessing": preprocessing, "sets": sets})
    found = tuple(_peer(entry, bare.columns) for entry in peers)
    return _made(Protocol, data | {"name": name, "preprocessing": preprocessing, "sets": sets, "peers": found})


def _peer(entry: Mapping[str, Any], columns: Sequence[str]) -> Peer:
    figures = {}
    for metric in entry.keys() - {"name", "source"}:
        values = entry[metric]
        if not isinstance(values, Mapping):
            if len(values) != len(columns):
                raise ValueError(f"peer {entry['name']}: {len(values)} values for {len(columns)} columns")
            values = dict(zip(columns, values, strict=True))
        if unknown := sorted(values.keys() - set(columns)):
            raise ValueError(f"peer {entry['name']}: no columns {unknown}; there are {list(columns)}")
        figures[metric] = {column: value for column, value in values.items() if not math.isnan(value)}
    return Peer(entry["name"], entry["source"], figures)


def _made(kind: Any, entry: Mapping[str, Any]) -> Any:
    """A dataclass from a table; lists become tuples."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{entry!r} is no table of {kind.__name__}")
    if unknown := sorted(entry.keys() - {field.name for field in fields(kind)}):
        raise ValueError(f"unknown entries {unknown} for {kind.__name__}")
    hints = get_type_hints(kind)
    values = {}
    for key, value in entry.items():
        wants_tuple = str(hints[key]).startswith("tuple")
        if isinstance(value, str) and wants_tuple:
            value = [value]
        values[key] = tuple(value) if wants_tuple else value
        _check(f"{key} of {kind.__name__}", values[key], hints[key])
    return kind(**values)


def _check(what: str, value: Any, hint: Any) -> None:
    """Raises ValueError for a value of a kind, or a word, that a field does not take. Whole numbers are floats too."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{what} is one of {', '.join(get_args(hint))}, not {value!r}")
        return
    words = str(hint).startswith("tuple[str")
    kinds = {str} if words else {one for one in (get_args(hint) or (hint,)) if one in (str, int, float, NoneType)}
    if float in kinds:
        kinds.add(int)
    if not kinds - {NoneType}:
        return
    wrong = [one for one in (value if words else (value,)) if type(one) not in kinds]
    if wrong:
        names = " or ".join(sorted(one.__name__ for one in kinds - {NoneType}))
        raise ValueError(f"{what} must be {names}, not {wrong[0]!r}")
