"""A model written as PyTorch's files: the public release's single file, or the directories of diffusers.

Tensors pass one by one from where they lie to where they go, so that memory holds one of
them, whatever the model's size. All that is written appears complete or not at all.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from data_pipelines.files import atomic_outputs
from mperceiver_jax.convert.diffusers.adapters_json import describe
from mperceiver_jax.convert.diffusers.components import library_components, scheduler_config
from mperceiver_jax.convert.formats.safetensors_writer import rounded, write_streamed
from mperceiver_jax.convert.keymaps.keymap import AssemblyMap, KeyMap
from mperceiver_jax.convert.keymaps.mperceiver import mperceiver_release
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.convert.schedule_tables import schedule_tables
from mperceiver_jax.convert.state_dicts import theirs
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Kind

Format = Literal["release", "diffusers", "safetensors"]
DType = Literal["float32", "bfloat16", "float16"]
Done = Callable[[], object]
"""Called for every parameter that is written."""


@dataclass(frozen=True)
class Part:
    """Some of a model's parameters, and how a family of checkpoints names them.

    Attributes:
        paths: of the whole model; `root` is what stands before the paths that `names` knows.
        tables: tensors that are no parameters; they go first, in float32 whatever the rest is in.
    """

    names: KeyMap | AssemblyMap
    paths: tuple[str, ...]
    root: str = ""
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)

    def tensors(self, path: str, kind: Kind, value: np.ndarray) -> dict[str, np.ndarray]:
        return theirs(self.names, path.removeprefix(self.root), kind, value)


def export(
    model: MPerceiver,
    values: Mapping[str, np.ndarray],
    output: Path,
    form: Format = "release",
    dtype: DType = "float32",
    done: Done = lambda: None,
) -> list[Path]:
    """Writes a model for PyTorch; returns the files and directories.

    Args:
        model: built abstractly.
        values: {path: array}, each asked for once; may lack whole parts where the form allows it.
        output: a file, or with `diffusers` a directory.
        form: `release`, one file with exactly the keys and shapes of the public release, tables of the
            schedule included. The release contains no detail refinement: ours goes into a second file,
            NAME.drm.safetensors. `safetensors`, one file with all parameters under the release's names,
            the refinement's behind `drm.`. `diffusers`, the directories `unet`, `vae` and `scheduler` for
            diffusers, `text_encoder` and `image_encoder` for transformers, and everything else in
            `adapters.safetensors`, which `adapters.json` describes.
        dtype: of the floating-point numbers, rounded to the nearest.

    Raises:
        FileExistsError: there is something at `output` already.
        ValueError: parameters are missing, not finite, or too large for the dtype. Nothing is written.
    """
    refinement_file = output.with_name(f"{output.stem}.drm.safetensors")
    for path in (output, refinement_file) if form == "release" else (output,):
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists already; move it away, or name another --output")
    write = partial(_write, model, values, np.dtype(jnp.dtype(dtype)), done)
    names = mperceiver_release(model)
    refinement = tuple(path for path in values if path.startswith("drm."))
    outputs = [output, refinement_file] if form == "release" and refinement else [output]
    with atomic_outputs(*outputs) as partials:
        if form == "diffusers":
            _write_diffusers(model, values, partials[0], dtype, write)
        elif form == "safetensors":
            write(Part(names, tuple(values)), partials[0])
        else:
            released = tuple(path for path in parameters.declared(model) if not path.startswith("drm."))
            write(Part(names, released, tables=schedule_tables(Schedule())), partials[0])
            for path in partials[1:]:
                write(Part(names, refinement), path)
    return outputs


def _write(
    model: MPerceiver, values: Mapping[str, np.ndarray], dtype: np.dtype, done: Done, part: Part, path: Path
) -> None:
    """Writes one file, parameter by parameter, in the model's order."""
    wanted = set(part.paths)
    variables = {key: value for key, value in parameters.declared(model).items() if key in wanted}
    absent = [key for key in variables if key not in values]
    if absent:
        raise ValueError(
            f"{path.name} would be incomplete: there are no values of {', '.join(absent[:5])} "
            f"({len(absent)} of {len(variables)}). Priors alone are no whole model; --format=diffusers and "
            "--format=safetensors write what there is"
        )
    shapes = {name: (table.dtype, table.shape) for name, table in part.tables.items()}
    for key, variable in variables.items():
        hollow = np.broadcast_to(np.False_, variable.get_value().shape)
        for name, tensor in part.tensors(key, variable.kind, hollow).items():
            shapes[name] = (dtype, tensor.shape)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from part.tables.items()
        for key, variable in variables.items():
            value = values[key]
            for name, tensor in part.tensors(key, variable.kind, value).items():
                yield name, rounded(name, tensor, dtype)
            done()

    path.parent.mkdir(parents=True, exist_ok=True)
    write_streamed(path, shapes, tensors())


def _write_diffusers(
    model: MPerceiver,
    values: Mapping[str, np.ndarray],
    folder: Path,
    dtype: DType,
    write: Callable[[Part, Path], None],
) -> None:
    """The libraries' directories, and next to them the parts that no library has a place for."""
    left = set(values)
    for home in library_components(model):
        paths = home.paths()
        if left.isdisjoint(paths):
            continue
        left.difference_update(paths)
        write(Part(keymap(home.module, home.layout), paths, home.root), folder / home.folder / home.file)
        of_weights = {"dtype": dtype} if home.layout == "transformers" else {}
        _write_json(folder / home.folder / "config.json", home.config | of_weights)
    scheduler = scheduler_config(Schedule(), model.config.prediction)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if left:
        names = mperceiver_release(model)
        write(Part(names, tuple(left)), folder / "adapters.safetensors")
        _write_json(folder / "adapters.json", describe(model, names, left, dtype))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
