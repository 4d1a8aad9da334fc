"""From published weights to a directory of pretrained weights: found, checked as a whole, then converted one by one."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from data_pipelines.files import cache_root
from data_pipelines.messages import print_line, shorten_list
from mperceiver_jax.checkpoints.model_parts import PARTS, missing_parts, part_of
from mperceiver_jax.checkpoints.pretrained import (
    FORMAT,
    PretrainedDirectory,
    is_pretrained_directory,
    require_empty,
    write_pretrained,
)
from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.convert.detect import find_parts, left_over, recognise
from mperceiver_jax.convert.formats.locate import WeightFile, weight_files
from mperceiver_jax.convert.formats.torch_files import open_tensors
from mperceiver_jax.convert.state_dicts import Found
from mperceiver_jax.distributed.runtime import on_every_process, on_first_process
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.progress import progress_bar

DTYPES: dict[str, Any] = {
    "stored": None,
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""What values can be converted to; `stored` keeps each tensor's own (float64 becomes float32)."""


@dataclass(frozen=True)
class SourceContents:
    """What one weight file gives to a model.

    Attributes:
        file: where it is.
        layout: what the file is, in words.
        found: {our path: its tensors}, without what an earlier file gave.
        unused: keys of what no part of the model takes.
    """

    file: WeightFile
    layout: str
    found: dict[str, Found]
    unused: list[str]

    @property
    def parts(self) -> list[str]:
        """Titles of the parts it gives, in the order of `PARTS`."""
        given = {part_of(path) for path in self.found}
        return [part.title for part in PARTS if part in given]


def contributions(model: MPerceiver, sources: Sequence[str], key: str = "") -> list[SourceContents]:
    """Looks into sources: what each file holds, all names and shapes checked, no value read.

    A parameter that several files have is taken from the first.

    Raises:
        FileNotFoundError, ValueError: see `weight_files`, `open_tensors` and `find_parts`.
    """
    result: list[SourceContents] = []
    taken: set[str] = set()
    for source in sources:
        for file in weight_files(source):
            tensors = open_tensors(file.path, key=key)
            found = find_parts(model, tensors, file.name)
            own = {path: tensor for path, tensor in found.items() if path not in taken}
            taken |= own.keys()
            unused = left_over(tensors, found)
            result.append(SourceContents(file, recognise(tensors, file.name).title, own, unused))
    return result


def import_pretrained(
    sources: Sequence[str],
    output: str | Path,
    model: MPerceiver,
    dtype: str = "stored",
    say: Callable[[str], None] = print,
    key: str = "",
) -> Path:
    """Converts published weights into a directory of pretrained weights that holds all that training needs.

    Args:
        sources: paths or hub repositories, see `weight_files`; together a full model.
        output: the directory to write.
        model: built abstractly; says which parameters there are, and their shapes.
        dtype: one of `DTYPES`.
        say: called with a line of text about each file.
        key: where the tensors are in pickled checkpoints, see `open_tensors`.

    Raises:
        FileExistsError: `output` is there already.
        FileNotFoundError, ValueError: the sources cannot be used; names files and keys. Nothing is written.
    """
    require_empty(output)
    given = contributions(model, sources, key)
    for contribution in given:
        say(f"{contribution.file.name}: {contribution.layout}, {', '.join(contribution.parts) or 'nothing new'}")
        if contribution.unused:
            say(f"  left aside: {shorten_list(sorted(contribution.unused), 5)}")
    found = {path: tensors for contribution in given for path, tensors in contribution.found.items()}
    if problems := missing_parts(model, found):
        raise ValueError(f"{', '.join(sources)}: " + "; ".join(problems))
    hashes = _hashes(given)
    records = [
        {
            "name": contribution.file.name,
            "layout": contribution.layout,
            "parts": contribution.parts,
            "sha256": {file.name: hashes[file] for file in contribution.file.files},
            "licence": sorted({part_of(path).licence for path in contribution.found}),
        }
        for contribution in given
    ]
    order = [path for path in parameters.declared(model) if path in found]
    with progress_bar("importing", len(order)) as bar:

        def values() -> Iterator[tuple[str, np.ndarray]]:
            for path in order:
                yield path, converted(found[path], DTYPES[dtype])
                bar.update(1)

        write_pretrained(output, values(), records)
    return Path(output)


def converted(found: Found, dtype: np.dtype | None) -> np.ndarray:
    """A parameter's value, contiguous, in another dtype or its own.

    Raises:
        ValueError: values of another type than weights have, not finite, or too large for the dtype; names file
            and key.
    """
    return np.asarray(found.read(dtype), order="C")


def pretrained_directory(pretrained: str, model: MPerceiver) -> PretrainedDirectory:
    """The directory that `config.pretrained` means; published weights are converted on first use.

    Args:
        pretrained: a directory of pretrained weights, or sources of `import_pretrained` separated by commas. Their
            conversion is kept in `$XDG_CACHE_HOME/mperceiver_jax/pretrained` (`~/.cache` by default), by
            the path, size and date of local weight files or the name of a repository. In a distributed run
            process 0 converts, and all processes must call this; of several runs that share the
            cache one converts, and the others wait.

    Raises:
        FileNotFoundError, ValueError: see `import_pretrained` and `PretrainedDirectory`; in every process.
    """
    if is_pretrained_directory(pretrained):
        return on_every_process(lambda: PretrainedDirectory(pretrained))
    whole = [pretrained] if Path(pretrained).expanduser().exists() else pretrained.split(",")
    sources = [source.strip() for source in whole if source.strip()]
    directory = on_every_process(lambda: cache_root() / "pretrained" / _identity(sources, model))
    on_first_process(lambda: _convert_once(sources, directory, model))
    return on_every_process(lambda: _opened(directory))


def _convert_once(sources: Sequence[str], directory: Path, model: MPerceiver) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_pretrained_directory(directory):
            for left in directory.parent.glob(f"{directory.name}.*.partial"):  # Of a conversion that was killed.
                shutil.rmtree(left, ignore_errors=True)
            import_pretrained(sources, directory, model, say=lambda text: print_line(f"importing {text}"))
            print_line(f"importing: kept in {directory}")


def _opened(directory: Path) -> PretrainedDirectory:
    if not is_pretrained_directory(directory):
        raise FileNotFoundError(
            f"process 0 has converted the pretrained weights, but {directory} is not to be seen from process "
            f"{jax.process_index()}: let XDG_CACHE_HOME be a directory that all hosts share, or run `python -m "
            "mperceiver_jax.convert import` beforehand and give its directory"
        )
    return PretrainedDirectory(directory)


def _identity(sources: Sequence[str], model: MPerceiver) -> str:
    """A digest of paths, sizes and times that identifies these sources without reading them."""
    identity: list[Any] = [FORMAT, to_mapping(model.config)]
    for source in sources:
        path = Path(source).expanduser()
        if path.exists():
            files = {file.resolve() for found in weight_files(source) for file in (found.path, *found.files)}
            identity.append([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)])
        else:
            identity.append(source)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _hashes(given: Sequence[SourceContents]) -> dict[Path, str]:
    files = [file for contribution in given for file in contribution.file.files]
    hashes = {}
    with progress_bar("hashing", sum(file.stat().st_size for file in files)) as bar:
        for file in files:
            digest = hashlib.sha256()
            with open(file, "rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
                    bar.update(len(block))
            hashes[file] = digest.hexdigest()
    return hashes
