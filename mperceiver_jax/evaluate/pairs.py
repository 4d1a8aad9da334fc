"""The pictures of a protocol: found, paired and checked before anything is measured, then read one by one."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.pictures import SUFFIXES, as_float, decode_picture
from data_pipelines.sources import clean_stem, picture_paths
from data_pipelines.stored_pictures import Picture
from mperceiver_jax.evaluate.protocols import Protocol, SetOfPairs
from mperceiver_jax.evaluate.published_trees import NamedPair, pairs_in_tree, tree_below
from mperceiver_jax.evaluate.rulers import Ruler, centre_crop, prepared, prepared_size

# How many names an error lists.
LISTED = 10


@dataclass(frozen=True)
class Pair:
    """One picture to measure.

    Attributes:
        set: name of its test set.
        name: stem of its degraded picture (of its clean one where noise is added); outputs carry it.
        gt: the clean picture.
        lq: the degraded picture; None where noise is added, or where only outputs are compared.
        output: what another system made of it; None where our model restores it.
        size: (height, width) at which it is restored and measured, border included.
        noise: (sigma, how many values of the protocol's noise stream come before it).
    """

    set: str
    name: str
    gt: Picture
    lq: Picture | None
    output: Path | None
    size: tuple[int, int]
    noise: tuple[float, int] | None = None

    @property
    def key(self) -> str:
        return f"{self.set}/{self.name}"

    def stamp(self) -> list[int]:
        """Sizes and times of the files it is measured from; a change makes an earlier result void."""
        files = [self.gt.path, self.lq.path if self.lq else None, self.output]
        stats = [path.stat() for path in files if path is not None]
        return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def find_pairs(
    protocol: Protocol,
    data: Path,
    *,
    sets: Sequence[str] = (),
    folders: Mapping[str, tuple[Path | None, Path]] | None = None,
    outputs: Path | None = None,
    named: str = "stem",
    partial: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Every picture of the sets, in the protocol's order, names sorted within a set.

    Args:
        data: the folder below which the sets lie.
        sets: only these; all when empty.
        folders: set name -> (degraded or None, clean) in place of the protocol's folders; or (None, the
            set's published tree).
        outputs: folder of another system's outputs, `<set>/<name>.<suffix>`, or the files themselves where
            there is one set.
        named: rule (`data_pipelines.sources`) from an output's stem to `<name>`.
        partial: leave out sets, and pictures, that are missing; else they are errors.

    Returns:
        (pictures, warnings): what makes figures incomparable with published ones, one sentence each.

    Raises:
        FileNotFoundError: a set or outputs that are missing; names them.
        ValueError: unknown names, pictures without a partner, sizes that differ; names them.
    """
    known = [one.name for one in protocol.sets]
    chosen = list(sets) or known
    if unknown := [name for name in [*chosen, *(folders or {})] if name not in known]:
        raise ValueError(f"{protocol.name} has no set {', '.join(unknown)}; it has {', '.join(known)}")
    pictures: list[Pair] = []
    warnings: list[str] = []
    problems: list[str] = []
    drawn = 0
    for one in protocol.sets:
        wanted = one.name in chosen
        # Noise is one stream through all sets of the protocol: those that are left out count as well.
        if not wanted and one.noise is None:
            continue
        try:
            source = _output_folder(outputs, one.name, len(chosen) == 1) if outputs is not None and wanted else None
            found, alone = _found(one, data, (folders or {}).get(one.name), source, named, partial)
        except FileNotFoundError as error:
            if wanted and not partial:
                raise
            if wanted:
                warnings.append(f"{one.name} is left out: {error}")
            continue
        numbered: list[Pair] = []
        differing: list[str] = []
        for name, degraded, clean in found:
            whole = _size(clean)
            if degraded is not None and _size(degraded) != whole:
                differing.append(f"{degraded.path} and {clean.path}")
                continue
            size = prepared_size(whole[0], whole[1], protocol.ruler)
            noise = None if one.noise is None else (one.noise, drawn)
            drawn += 0 if one.noise is None else 3 * size[0] * size[1]
            numbered.append(Pair(one.name, name, clean, degraded, None, size, noise))
        if not wanted:
            continue
        if differing:
            problems.append(f"{one.name}: {len(differing)} pairs differ in size: {_some(differing)}")
            continue
        if one.count and len(numbered) != one.count:
            warnings.append(f"{one.name} has {len(numbered)} pictures here; the published set has {one.count}")
        if outputs is not None:
            assert source is not None
            numbered, missing = _with_outputs(numbered, source, named)
            missing += [f"for {path}" for path in alone]
            if missing:
                text = f"{one.name}: {len(missing)} outputs are missing in {source}: {_some(missing)}"
                (warnings if partial else problems).append(text)
        problems += _wrong_sizes(numbered, protocol.ruler)
        pictures += numbered
    if problems:
        hint = "; --partial measures what is there" if any("missing" in text for text in problems) else ""
        raise ValueError("; ".join(problems) + hint)
    if not pictures:
        raise ValueError(f"nothing to measure: {'; '.join(warnings) or 'no pictures'}")
    return pictures, warnings


def list_hash(pictures: Iterable[Pair]) -> str:
    """Which pictures, at which sizes: equal for equal lists on any machine."""
    lines = "".join(f"{picture.key} {picture.size[0]}x{picture.size[1]}\n" for picture in pictures)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


class NoiseStream:
    """The noise of `numpy.random.seed(seed)`, one stream through all pictures, from any position."""

    def __init__(self, seed: int, pictures: Sequence[Pair]):
        self._states = {}
        stream, position = np.random.RandomState(seed), 0
        for picture in pictures:
            if picture.noise is not None:
                # Normals come in pairs and one may be kept: positions are only reached by drawing.
                stream.standard_normal(picture.noise[1] - position)
                self._states[picture.key] = stream.get_state()
                position = picture.noise[1]

    def noisy(self, picture: Pair, clean: np.ndarray) -> np.ndarray:
        """uint8 with noise, clipped and truncated as the PromptIR family does."""
        assert picture.noise is not None
        stream = np.random.RandomState()
        stream.set_state(self._states[picture.key])
        noise = stream.standard_normal(clean.shape)
        return np.clip(clean + picture.noise[0] * noise, 0, 255).astype(np.uint8)


def read_pair(
    picture: Pair, ruler: Ruler, stream: NoiseStream
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """(degraded, clean, output) as float32 RGB in [0, 1], cropped and resized by the protocol; None where absent.

    Raises:
        ValueError: a file that cannot be read; names it.
    """
    clean = prepared(_pixels(picture.gt), ruler)
    degraded = output = None
    if picture.noise is not None:
        if clean.dtype != np.uint8:
            raise ValueError(f"{picture.gt.path}: noise is added to pictures of 8 bits; this one has 16")
        degraded = as_float(stream.noisy(picture, clean))
    elif picture.lq is not None:
        degraded = as_float(prepared(_pixels(picture.lq), ruler))
    if picture.output is not None:
        # Larger than the size measured at: not cropped yet, as `find_pairs` has checked.
        output = as_float(centre_crop(decode_picture(picture.output), *picture.size))
    return degraded, as_float(clean), output


def _found(
    one: SetOfPairs,
    data: Path,
    given: tuple[Path | None, Path] | None,
    outputs: Path | None,
    named: str,
    partial: bool,
) -> tuple[list[NamedPair], list[Path]]:
    """The pairs of a set by name; and, where there are no degraded pictures, the truths that no output is for."""
    first = lambda names: next((data / name for name in names if (data / name).is_dir()), None)
    lq, gt = given or (first(one.lq), first(one.gt))
    tree = tree_below(data, one.layout) if one.layout and given is None else None
    if one.layout and given is not None and lq is None and one.lq and not _holds_pictures(given[1]):
        tree, gt = given[1], None
    if tree is not None and (gt is None or (lq is None and one.lq)):
        assert one.layout is not None
        return pairs_in_tree(tree, one.layout, partial), []
    if gt is None or (lq is None and one.lq and outputs is None):
        looked = " or ".join(one.gt if gt is None else one.lq)
        raise FileNotFoundError(f"{one.name}: no folder {looked} in {data}; --set names others")
    # Without degraded pictures the outputs themselves tell which truths they belong to.
    alone = lq is None and one.noise is None and outputs is not None
    pairs = _pairs(one, data, outputs if alone else lq, gt, named if alone else None)
    unused = sorted({*picture_paths(gt)} - {clean.path for _, _, clean in pairs}) if alone else []
    return pairs, unused


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


def _pairs(one: SetOfPairs, data: Path, lq: Path | None, gt: Path, named: str | None) -> list[NamedPair]:
    """(name, degraded, clean), by name. `named`: `lq` holds outputs of such names, there are no degraded pictures."""
    clean = _by_stem(gt)
    if lq is None:
        pairs: list[NamedPair] = [(stem, None, Picture(path)) for stem, path in sorted(clean.items())]
    else:
        degraded = _by_stem(lq, named or "stem")
        partners = {rule: [clean_stem(name, rule) for name in degraded] for rule in one.pairing}
        missing = {rule: [n for n in names if n not in clean] for rule, names in partners.items()}
        rule = min(missing, key=lambda rule: len(missing[rule]))
        if missing[rule]:
            raise ValueError(
                f"{one.name}: {len(missing[rule])} of {len(degraded)} pictures in {lq} have no truth in {gt} "
                f"(rule {rule!r}): looked for {_some(missing[rule])}; another rule is given with --pairing"
            )
        pairs = [
            (name, None if named else Picture(path), Picture(clean[partner]))
            for (name, path), partner in zip(degraded.items(), partners[rule], strict=True)
        ]
    names = next((data / name for name in one.listed if (data / name).is_file()), None)
    if names is not None:
        stems = {Path(line.split()[0]).stem for line in names.read_text().splitlines() if line.strip()}
        pairs = [pair for pair in pairs if pair[0] in stems or pair[2].path.stem in stems]
        if not pairs:
            raise ValueError(f"{one.name}: none of the pictures in {lq or gt} is in the list {names}")
    return pairs


def _output_folder(outputs: Path, name: str, single: bool) -> Path:
    """Where the outputs of a set lie: a folder of its name, or, of a single set, the folder given."""
    folder = outputs / name
    folder = outputs if single and not folder.is_dir() else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: no folder of outputs {folder}")
    return folder


def _with_outputs(pictures: Sequence[Pair], folder: Path, named: str) -> tuple[list[Pair], list[str]]:
    """The pictures that have an output, and the names of those that have none."""
    there = _by_stem(folder, named)
    found = [replace(picture, output=there[picture.name]) for picture in pictures if picture.name in there]
    return found, [picture.name for picture in pictures if picture.name not in there]


def _by_stem(folder: Path, rule: str = "stem") -> dict[str, Path]:
    """The pictures of a folder by what the rule makes of their stems."""
    paths: dict[str, Path] = {}
    for path in picture_paths(folder):
        if (name := clean_stem(path.stem, rule)) in paths:
            raise ValueError(f"{paths[name]} and {path} are both called {name}; keep one of them")
        paths[name] = path
    return paths


def _wrong_sizes(pictures: Sequence[Pair], ruler: Ruler) -> list[str]:
    """Outputs of neither the size that is measured nor, where the protocol crops, the whole picture's."""
    wrong = []
    for picture in pictures:
        if picture.output is not None and (size := _size(Picture(picture.output))) != picture.size:
            whole = _size(picture.gt)
            if ruler.longest or size != whole:
                expected = f"{picture.size[1]}x{picture.size[0]}"
                wrong.append(f"{picture.output} is {size[1]}x{size[0]}, not {expected}")
    return [f"{len(wrong)} outputs have a wrong size: {_some(wrong)}"] if wrong else []


def _size(picture: Picture) -> tuple[int, int]:
    """(height, width), upright; of a file without decoding it."""
    if picture.block is not None:
        height, width, _ = _pixels(picture).shape
        return height, width
    try:
        with Image.open(picture.path) as file:
            turned = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (file.width, file.height) if turned else (file.height, file.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {picture.path}: {error}; replace it or take it out") from error


def read_truth(pair: Pair) -> np.ndarray:
    """The clean picture as it is stored."""
    return _pixels(pair.gt)


def _pixels(picture: Picture) -> np.ndarray:
    return decode_picture(picture.path if picture.block is None else picture.read())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
