"""Released weights: a trained model in one folder of three files, in the package or in a repository of a model hub.

    config.json         the configuration of the run that trained it, and how far each of its stages came
    model.safetensors   every parameter of the model that is used
    README.md           the model card

A folder of released weights can stand wherever the workdir of a run is read: restoring, evaluation, adaptation,
export. `python -m mperceiver_jax.convert release` writes one.
"""

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from data_pipelines.messages import shorten_list
from mperceiver_jax.checkpoints.initial_params import TASK_MAPS
from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.errors import ConfigError

WEIGHTS = "model.safetensors"
CARD = "README.md"
FILES = ("config.json", WEIGHTS, CARD, TASK_MAPS)
"""What is fetched from a hub. The maps of tasks belong to MiOIR alone."""
STAGES = "stages"
"""The field of `config.json`, next to the configuration, with one object for each stage."""
NOTES = "notes"
"""The field of `config.json` with sentences that are shown to whoever restores with the weights; may be missing."""
HUB = "hf://"
BUNDLED = Path(__file__).parents[1] / "weights"

Readers = dict[str, Callable[[], np.ndarray]]


def bundled_names() -> list[str]:
    """The names of the weights that are part of this package."""
    return sorted(folder.name for folder in BUNDLED.glob("*") if is_released(folder))


def is_released(folder: str | Path) -> bool:
    """Whether the folder holds released weights and not the workdir of a run."""
    return (Path(folder) / WEIGHTS).is_file()


def locate(source: str | Path) -> Path:
    """The folder of a model: its workdir, or its released weights.

    Args:
        source: the name of bundled weights, such as "base" (write ./base for a folder of that name);
            hf://OWNER/NAME or hf://OWNER/NAME@REVISION for a repository of the Hugging Face hub, which is downloaded
            into the hub's own cache once; otherwise a folder.

    Raises:
        ConfigError: the hub's client is not installed, or the repository cannot be had or holds no released weights.
    """
    text = str(source)
    if text.startswith(HUB):
        return _from_hub(text)
    return BUNDLED / text if text in bundled_names() else Path(source)


def read_record(folder: str | Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """(the stages of released weights: name, step, planned, averaged; notes for their user).

    Raises:
        ValueError: `config.json` lacks them or is damaged.
    """
    read_config(folder)  # Reports a damaged file.
    path = Path(folder) / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    stages, notes = content.get(STAGES), content.get(NOTES, [])
    fields = {"name": str, "step": int, "planned": int, "averaged": bool}
    well_formed = isinstance(stages, list) and all(
        isinstance(stage, dict) and all(isinstance(stage.get(name), kind) for name, kind in fields.items())
        for stage in stages
    )
    if not well_formed:
        raise ValueError(f"{path}: the field {STAGES!r} is missing or damaged; fetch the weights again")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError(f"{path}: the field {NOTES!r} is damaged; fetch the weights again")
    return [{name: stage[name] for name in fields} for stage in stages], tuple(notes)


def readers(folder: str | Path, shapes: Mapping[str, tuple[int, ...]], unused: Collection[str] = ()) -> Readers:
    """A function for every parameter in the file that reads it.

    Args:
        shapes: of all parameters of the model.
        unused: paths that may be absent, since the model does not use them.

    Raises:
        ValueError: the file cannot be read, or holds the parameters of another model.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, "numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch the weights again") from error
    wrong = sorted(name for name, shape in found.items() if shapes.get(name) != shape)
    wrong += sorted(shapes.keys() - found.keys() - set(unused))
    if wrong:
        raise ValueError(
            f"{path}: not the parameters of the model in config.json; {shorten_list(wrong)} are unknown, missing or "
            "of another shape. It may have been written by another version"
        )
    return {name: partial(_read, path, name) for name in found}


def _read(path: Path, name: str) -> np.ndarray:
    with safe_open(path, "numpy") as file:
        return file.get_tensor(name)


def _from_hub(address: str) -> Path:
    """The snapshot of a repository in the hub's cache; downloads what is missing."""
    repository, _, revision = address.removeprefix(HUB).partition("@")
    if repository.count("/") != 1:
        raise ConfigError(f"{address}: give hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ConfigError(f"{address}: install the hub's client first: pip install mperceiver-jax[hub]") from error
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"{address} cannot be had from the hub: {error}") from error
    if not is_released(folder):
        raise ConfigError(f"{address}: the repository holds no {WEIGHTS}, hence no released weights of this program")
    return folder
