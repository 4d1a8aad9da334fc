"""The images of a protocol: found, paired and checked before anything is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipelines.datasets.file_lists import read_list
from data_pipelines.datasets.patterns import plain
from data_pipelines.datasets.records import ImageRef
from data_pipelines.images import SUFFIXES
from data_pipelines.sources.folders import clean_stem, image_paths
from mperceiver_jax.evaluate.protocols.pair import Pair
from mperceiver_jax.evaluate.protocols.preprocessing import Preprocessing, prepared_size
from mperceiver_jax.evaluate.protocols.protocol import Protocol, SetOfPairs
from mperceiver_jax.evaluate.protocols.published_layouts import NamedPair, pairs_in_tree, tree_below
from mperceiver_jax.evaluate.protocols.reader import size_of

# How many names an error lists.
LISTED = 10


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
    """Every image of the sets, in the protocol's order, names sorted within a set.

    Args:
        data: the folder below which the sets lie.
        sets: only these; all when empty.
        folders: set name -> (degraded or None, clean) in place of the protocol's folders; or (None, the
            set's published tree).
        outputs: folder of another system's outputs, `<set>/<name>.<suffix>`, or the files themselves where
            there is one set.
        named: rule (`data_pipelines.sources.folders`) from an output's stem to `<name>`.
        partial: leave out sets, and images, that are missing or cannot be measured; else they are errors.

    Returns:
        (images, warnings): what makes figures incomparable with published ones, one sentence each.

    Raises:
        FileNotFoundError: a set or outputs that are missing; names them.
        ValueError: unknown names, images without a partner, sizes that differ; names them.
    """
    chosen = _chosen(protocol, sets, folders or {})
    images: list[Pair] = []
    warnings: list[str] = []
    problems: list[str] = []
    report = (warnings if partial else problems).append
    drawn = 0  # Values of the protocol's noise that the images so far have taken.
    for one in protocol.sets:
        wanted = one.name in chosen
        # Noise is one stream through all sets of the protocol: those that are left out count as well.
        if not wanted and one.noise is None:
            continue
        faults: list[str] = []
        try:
            source = _output_folder(outputs, one.name, len(chosen) == 1) if outputs is not None and wanted else None
            found, alone = _found(one, data, (folders or {}).get(one.name), source, named, partial, faults)
        except FileNotFoundError as error:
            if wanted and not partial:
                raise
            if wanted:
                warnings.append(f"{one.name} is left out: {error}")
            continue
        numbered = _measurable(one, found, protocol.preprocessing, drawn, partial, faults)
        drawn += 0 if one.noise is None else sum(3 * pair.size[0] * pair.size[1] for pair in numbered)
        if not wanted:
            continue
        if source is not None:
            numbered, missing = _with_outputs(numbered, source, named)
            if missing := [*missing, *(f"for {path}" for path in alone)]:
                report(f"{one.name}: {len(missing)} outputs are missing in {source}: {_some(missing)}")
            numbered, unfit = _fitting(numbered, protocol.preprocessing, decode=partial)
            faults += unfit
        if faults:
            report(f"{one.name}: {len(faults)} faults: {_some(faults)}")
        if one.count and len(numbered) != one.count:
            warnings.append(f"{one.name} has {len(numbered)} images here; the published set has {one.count}")
        images += numbered
    if problems:
        raise ValueError("; ".join(problems) + "; --partial measures what is there")
    if not images:
        raise ValueError(f"nothing to measure: {'; '.join(warnings) or 'no images'}")
    return images, warnings


def _chosen(protocol: Protocol, sets: Sequence[str], folders: Mapping[str, object]) -> list[str]:
    """The sets to measure; all where none is named. Raises ValueError for names that are unknown."""
    known = [one.name for one in protocol.sets]
    if unknown := [name for name in [*sets, *folders] if name not in known]:
        raise ValueError(f"{protocol.name} has no set {', '.join(unknown)}; it has {', '.join(known)}")
    return list(sets) or known


def _measurable(
    one: SetOfPairs,
    found: Sequence[NamedPair],
    preprocessing: Preprocessing,
    drawn: int,
    partial: bool,
    faults: list[str],
) -> list[Pair]:
    """The pairs whose images can be read and agree in size, with their place in the protocol's noise.

    Args:
        drawn: values of the noise that the sets before this one take.
        faults: takes a sentence for every other pair.
    """
    pairs: list[Pair] = []
    for name, degraded, clean in found:
        try:
            whole = size_of(clean, decode=partial)
            if degraded is not None and size_of(degraded, decode=partial) != whole:
                raise ValueError(f"{degraded.path} and {clean.path} differ in size")
        except ValueError as error:
            faults.append(str(error))
            continue
        size = prepared_size(whole[0], whole[1], preprocessing)
        noise = None if one.noise is None else (one.noise, drawn)
        drawn += 0 if one.noise is None else 3 * size[0] * size[1]
        pairs.append(Pair(one.name, name, clean, degraded, None, size, noise))
    return pairs


def _found(
    one: SetOfPairs,
    data: Path,
    given: tuple[Path | None, Path] | None,
    outputs: Path | None,
    named: str,
    partial: bool,
    faults: list[str],
) -> tuple[list[NamedPair], list[Path]]:
    """The pairs of a set by name; and, where there are no degraded images, the truths that no output is for."""
    first = lambda names: next((data / name for name in names if (data / name).is_dir()), None)
    lq, gt = given or (first(one.lq), first(one.gt))
    tree = tree_below(data, one.layout) if one.layout and given is None else None
    if one.layout and given is not None and lq is None and one.lq and not _holds_images(given[1]):
        tree, gt = given[1], None
    if tree is not None and (gt is None or (lq is None and one.lq)):
        assert one.layout is not None
        return pairs_in_tree(tree, one.layout, partial), []
    if gt is None or (lq is None and one.lq and outputs is None):
        looked = " or ".join(one.gt if gt is None else one.lq)
        raise FileNotFoundError(f"{one.name}: no folder {looked} in {data}; --set names others")
    # Without degraded images the names of the outputs decide which ground truth images they belong to.
    alone = lq is None and one.noise is None and outputs is not None
    pairs, lonely = _pairs(one, outputs if alone else lq, gt, named if alone else None)
    if lonely and tree is not None:
        # Its names follow another rule, which the published layout knows.
        assert one.layout is not None
        return pairs_in_tree(tree, one.layout, partial), []
    faults += lonely
    listed = next((data / name for name in one.listed if (data / name).is_file()), None)
    unused = sorted({*image_paths(gt)} - {clean.path for _, _, clean in pairs}) if alone and not listed else []
    return (_listed(pairs, listed, faults) if listed else pairs), unused


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


def _pairs(one: SetOfPairs, lq: Path | None, gt: Path, named: str | None) -> tuple[list[NamedPair], list[str]]:
    """(name, degraded, clean), by name, and the problems of the others.

    `named`: `lq` holds outputs of such names, there are no degraded images.
    """
    truths = _by_stem(gt)
    if lq is None:
        return [(stem, None, ImageRef(path)) for stem, path in sorted(truths.items())], []
    clean = {plain(stem): path for stem, path in truths.items()}
    degraded = _by_stem(lq, named or "stem")
    partners = {rule: [plain(clean_stem(name, rule)) for name in degraded] for rule in one.pairing}
    missing = {rule: [n for n in names if n not in clean] for rule, names in partners.items()}
    rule = min(missing, key=lambda rule: len(missing[rule]))
    lonely = [
        f"{len(missing[rule])} of {len(degraded)} images in {lq} have no truth in {gt} (rule {rule!r}): looked for "
        f"{_some(missing[rule])}; another rule is given with --pairing"
    ]
    pairs: list[NamedPair] = [
        (name, None if named else ImageRef(path), ImageRef(clean[partner]))
        for (name, path), partner in zip(degraded.items(), partners[rule], strict=True)
        if partner in clean
    ]
    return pairs, lonely if missing[rule] else []


def _listed(pairs: Sequence[NamedPair], file: Path, faults: list[str]) -> list[NamedPair]:
    """Those of the pairs that a list names, by their degraded or by their clean image."""
    stems = dict.fromkeys(plain(name.rpartition("/")[2]) for name in read_list(file))
    there = {plain(stem) for name, _, clean in pairs for stem in (name, clean.path.stem)}
    if absent := [stem for stem in stems if stem not in there]:
        faults.append(f"{len(absent)} images of the list {file} are not there: {_some(absent)}")
    return [pair for pair in pairs if plain(pair[0]) in stems or plain(pair[2].path.stem) in stems]


def _output_folder(outputs: Path, name: str, single: bool) -> Path:
    """Where the outputs of a set lie: a folder of its name, or, of a single set, the folder given."""
    folder = outputs / name
    folder = outputs if single and not folder.is_dir() else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: no folder of outputs {folder}")
    return folder


def _with_outputs(images: Sequence[Pair], folder: Path, named: str) -> tuple[list[Pair], list[str]]:
    """The images that have an output, and the names of those that have none.

    Outputs in folders of their own, as `scene/frame`, belong to the image whose path has these parts in this order.
    """
    if _holds_images(folder):
        there = {plain(stem): path for stem, path in _by_stem(folder, named).items()}
        output_of = lambda image: there.get(plain(image.name))
    else:
        nested: dict[str, list[Path]] = {}
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
            nested.setdefault(plain(clean_stem(path.stem, named)), []).append(path)

        def output_of(image: Pair) -> Path | None:
            own = (image.lq or image.gt).path
            fits = [
                path
                for path in nested.get(plain(own.stem), ())
                if _in_this_order(path.relative_to(folder).parent.parts, own.parent.parts)
            ]
            if len(fits) > 1:
                raise ValueError(f"{fits[0]} and {fits[1]} could both be the output of {own}; name them apart")
            return fits[0] if fits else None

    found = [replace(image, output=output) for image in images if (output := output_of(image))]
    with_one = {image.name for image in found}
    return found, [image.name for image in images if image.name not in with_one]


def _in_this_order(parts: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the parts occur in the whole one after the other."""
    rest = iter(whole)
    return all(part in rest for part in parts)


def _by_stem(folder: Path, rule: str = "stem") -> dict[str, Path]:
    """The images of a folder by what the rule makes of their stems."""
    paths: dict[str, Path] = {}
    known: dict[str, Path] = {}
    for path in image_paths(folder):
        name = clean_stem(path.stem, rule)
        if (other := known.setdefault(plain(name), path)) != path:
            raise ValueError(f"{other} and {path} are both called {name}; keep one of them")
        paths[name] = path
    return paths


def _fitting(images: Sequence[Pair], preprocessing: Preprocessing, decode: bool) -> tuple[list[Pair], list[str]]:
    """The images whose output can be measured, and the problems of the other outputs.

    An output has the size that is measured or, where the protocol crops, the whole image's.
    """
    fitting, unfit = [], []
    for image in images:
        assert image.output is not None
        try:
            size = size_of(ImageRef(image.output), decode)
            if size != image.size and (preprocessing.longest or size != size_of(image.gt)):
                expected = f"{image.size[1]}x{image.size[0]}"
                raise ValueError(f"{image.output} is {size[1]}x{size[0]}, not {expected}")
        except ValueError as error:
            unfit.append(str(error))
        else:
            fitting.append(image)
    return fitting, unfit


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
