"""Where published weights are: a file, a directory as diffusers or transformers write it, or a hub repository."""

import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from mperceiver_jax.convert.formats.torch_files import SUFFIXES, is_index, shards

FOLDERS = ("unet", "vae", "text_encoder", "image_encoder")
ADAPTERS = "adapters.safetensors"
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
_REPOSITORY = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?P<file>(/[\w.-]+)+)?(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class WeightFile:
    """Tensors that belong together.

    Attributes:
        name: for messages: the path, or the place in its repository.
        path: the file, or the index of its shards.
    """

    name: str
    path: Path

    @property
    def files(self) -> list[Path]:
        """The files with the tensors."""
        return shards(self.path) if is_index(self.path.name) else [self.path]


def weight_files(source: str) -> list[WeightFile]:
    """The weight files of a source: those of a directory's components, or the file itself.

    Args:
        source: a path, or a hub repository `OWNER/NAME[/FILE][@REVISION]`, which is downloaded into the
            hub's own cache.

    Raises:
        FileNotFoundError: no such file, directory or repository, or it cannot be reached.
        ValueError: nothing in it is a weight file, or several could be meant.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [WeightFile(source, path)]
    if path.is_dir():
        return [WeightFile(f"{source}/{name}", path / name) for name in chosen(_names(path), source)]
    named = _REPOSITORY.fullmatch(source)
    # A name that ends like a file is one, unless it stands behind the two names of a repository.
    if named is None or (not named["file"] and source.endswith((*SUFFIXES, ".json"))):
        raise FileNotFoundError(f"{source}: no such file or directory, and no hub repository's name (OWNER/NAME)")
    return _from_hub(source, named["id"], (named["file"] or "")[1:], named["revision"])


def chosen(names: Collection[str], where: str) -> list[str]:
    """Which of a directory's files to read: one for each component, safetensors rather than pickles, whole
    precision rather than variants.

    Args:
        names: relative paths with `/`.

    Raises:
        ValueError: none, or several that could be meant.
    """
    found = []
    for folder in FOLDERS:
        inside = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
        if weights := _weights(inside, f"{where}/{folder}"):
            found.append(f"{folder}/{weights}")
    if found:
        return [*found, *(name for name in names if name == ADAPTERS)]
    if weights := _weights(names, where):
        return [weights]
    raise ValueError(
        f"{where}: no weights there; expected one of {', '.join(f'{folder}/' for folder in FOLDERS)} with "
        f"weights, or one file of {', '.join(SUFFIXES)}"
    )


def _names(path: Path) -> list[str]:
    """The files that `chosen` looks at; what else there is, be it a whole disk, is not walked through."""
    folders = (path, *(path / folder for folder in FOLDERS if (path / folder).is_dir()))
    return [file.relative_to(path).as_posix() for folder in folders for file in folder.iterdir() if file.is_file()]


def _weights(names: Collection[str], where: str) -> str | None:
    """The weight file among those directly in a folder; None if there is none."""
    names = [name for name in names if "/" not in name]
    for ending in (".safetensors", ".bin"):
        for variant in ("", r"\.[\w-]+"):  # Whole precision before variants, as in model.fp16.safetensors.
            for stem in _STEMS:
                index, single = rf"{stem}\{ending}\.index{variant}\.json", rf"{stem}{variant}\{ending}"
                fitting = [n for n in names if re.fullmatch(index, n)] or [n for n in names if re.fullmatch(single, n)]
                if len(fitting) > 1:
                    raise ValueError(f"{where}: which of {', '.join(sorted(fitting))}? Name the file itself")
                if fitting:
                    return fitting[0]
    others = sorted(name for name in names if name.endswith(SUFFIXES) and not re.search(r"-\d+-of-\d+\.", name))
    others = [name for name in others if name != ADAPTERS] or others
    if len(others) > 1:
        raise ValueError(f"{where}: which of {', '.join(others)}? Name the file itself")
    return others[0] if others else None


def _from_hub(source: str, repository: str, file: str, revision: str | None) -> list[WeightFile]:
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise FileNotFoundError(
            f"{source}: no such file or directory; to download a hub repository of that name install "
            "huggingface-hub (pip install 'mperceiver-jax[hub]')"
        ) from error
    # The client logs every retry; the final error is reported below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        names, fetch = _listing(hub, repository, revision)
        weights = [file] if file else chosen(names, source)
        found = []
        for name in weights:
            path = fetch(name)
            if is_index(name):
                folder = name.rpartition("/")[0]
                for shard in shards(path):
                    fetch(f"{folder}/{shard.name}" if folder else shard.name)
            found.append(WeightFile(f"{repository}/{name}", path))
        return found
    except ValueError:
        raise
    except Exception as error:  # The hub's client raises whatever its transport does.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{source}: no such file or directory here, and the hub's repository {repository} cannot be read "
            f"({reason}). Check the name and the network (private repositories need `hf auth login`), or download "
            "it where there is one and give the path"
        ) from error


def _listing(hub, repository: str, revision: str | None) -> tuple[list[str], Callable[[str], Path]]:
    """Names of a repository's files, and a function that fetches one; from the hub's cache when offline."""
    try:
        names = hub.HfApi().list_repo_files(repository, revision=revision)
    except Exception as unreachable:
        try:
            folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise unreachable from None
        return _names(folder), lambda name: folder / name
    return names, lambda name: Path(hub.hf_hub_download(repository, name, revision=revision))
