"""Restorers by regression as their releases store them: read into a run that can be used, and written from one.

    PromptIR, AM-PromptIR   Lightning's: {'state_dict': {'net.KEY': tensor}}         .ckpt
    PIP                     {'params': {KEY: tensor}, 'epoch': number}               .pkl
    MiOIR                   {'params': {KEY: tensor}, 'params_ema': {KEY: tensor}}   .pth

Every tensor that the original module declares is written, dead ones and buffers included, so that it loads
strictly. A file NAME.safetensors holds the same tensors without a container. A classifier that belongs to the network
goes into a file of its own, NAME.classifier.SUFFIX.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.files import atomic_outputs
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.initial_params import TASK_MAPS, checkpoint_folder
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.checkpoints.pretrained import require_empty
from mperceiver_jax.checkpoints.workdir import bind_workdir
from mperceiver_jax.config.experiment import Experiment, to_mapping
from mperceiver_jax.convert.formats.safetensors_writer import rounded
from mperceiver_jax.convert.formats.torch_files import open_tensors, read_torch, write_safetensors
from mperceiver_jax.convert.importer import converted
from mperceiver_jax.convert.state_dicts import dead_tensors, match, to_torch
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.mioir.prompting import task_maps
from mperceiver_jax.models.restorers.registry import RegressionConfig, RegressionModel

State = dict[str, np.ndarray]
SUFFIXES = (".safetensors", ".ckpt", ".pkl", ".pth", ".pt")
NETWORK, CLASSIFIER = "network.", "classifier."
ASIDE = "kept_aside.safetensors"


def state_dict(
    model: RegressionModel, values: Mapping[str, Any], part: str, dtype: str = "float32", aside: State | None = None
) -> State:
    """The state dict of one part of a model under the release's keys, complete.

    Args:
        part: `NETWORK` or `CLASSIFIER`.
        dtype: of the floating-point numbers, rounded to the nearest.
        aside: what `kept_aside` reads.

    Raises:
        ValueError: the part has no released form; values that are not finite, or too large for the dtype.
    """
    module: nnx.Module = model.network if part == NETWORK else model.classifier
    own = {path.removeprefix(part): np.asarray(values[path]) for path in values if path.startswith(part)}
    wide = np.dtype(jnp.dtype(dtype))
    return {
        key: rounded(key, value, wide) if np.issubdtype(value.dtype, np.floating) else value
        for key, value in to_torch(module, own, dead=aside if part == NETWORK else None).items()
    }


def kept_aside(workdir: Path) -> State:
    """Of a run that was imported, the tensors of its file that the network has no use for; else nothing."""
    file = workdir / ASIDE
    return read_torch(file) if file.exists() else {}


def container(family: str, state: State, averages: State | None, epoch: int) -> dict[str, Any]:
    """What the family's release stores: state dicts under its names. `averages` are used by MiOIR only."""
    if family in ("promptir", "am_promptir"):
        return {"state_dict": {f"net.{key}": value for key, value in state.items()}}
    if family == "pip":
        return {"params": state, "epoch": epoch}
    return {"params": state, "params_ema": state if averages is None else averages}


def export_regression(
    model: RegressionModel,
    values: Mapping[str, Any],
    output: Path,
    dtype: str = "float32",
    averages: Mapping[str, Any] | None = None,
    epoch: int = 0,
    done: Callable[[int], object] = lambda count: None,
    aside: State | None = None,
) -> list[Path]:
    """Writes a model for PyTorch; returns the files, the network's first. All appear complete or not at all.

    Args:
        output: NAME.safetensors, or with the release's container NAME.ckpt, .pkl, .pth or .pt (needs torch).
        averages: moving averages of the parameters, for the containers that have a place for them.
        epoch: noted in containers that have a place for it.
        done: called with the number of parameters that were written.
        aside: what `kept_aside` reads.

    Raises:
        FileExistsError: `output`, or a file that is written next to it, exists already.
        ValueError: another suffix, or as `state_dict`; torch is not installed and is needed.
    """
    if output.suffix not in SUFFIXES:
        raise ValueError(f"--output={output}: a file of this model must end in one of {', '.join(SUFFIXES)}")
    parts = {NETWORK: output}
    if hasattr(model, "classifier"):
        parts[CLASSIFIER] = output.with_name(f"{output.stem}.classifier{output.suffix}")
    for path in parts.values():
        if path.is_symlink() or path.exists():
            raise FileExistsError(f"{path} exists already; move it away, or name another --output")
    states = {part: state_dict(model, values, part, dtype, aside) for part in parts}
    average = {} if averages is None else {part: state_dict(model, averages, part, dtype, aside) for part in parts}
    with atomic_outputs(*parts.values()) as partials:
        for part, path in zip(parts, partials, strict=True):
            if path.suffix == ".safetensors":
                write_safetensors(path, states[part])
            else:
                # The classifier is MiOIR's, whatever the network is.
                family = model.config.family if part == NETWORK else "classifier"
                _write_pickled(path, container(family, states[part], average.get(part), epoch))
            done(sum(key.startswith(part) for key in values))
    return list(parts.values())


def _write_pickled(path: Path, content: Mapping[str, Any]) -> None:
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{path.name}: writing {path.suffix} needs torch; take NAME.safetensors") from error

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(item) for key, item in value.items()}
        if isinstance(value, np.ndarray) and value.dtype == jnp.bfloat16:
            return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value

    torch.save(tensors(content), path)


def regression_modules(experiment: Experiment) -> dict[str, nnx.Module]:
    """{`NETWORK` or `CLASSIFIER`: the module}, built abstractly."""
    model = experiment.build()
    assert isinstance(model, RegressionModel)
    return _modules(model)


def _modules(model: RegressionModel) -> dict[str, nnx.Module]:
    return {NETWORK: model.network} | ({CLASSIFIER: model.classifier} if hasattr(model, "classifier") else {})


def _read_modules(
    modules: Mapping[str, nnx.Module], sources: Sequence[Path], key: str = ""
) -> tuple[State, State, State]:
    """(last parameters, averages, tensors that the network declares and never uses) of the files.

    Of a file with one set of parameters, last ones and averages are both that one. Raises as `import_regression`.
    """
    last: State = {}
    averages: State = {}
    aside: State = {}
    for (part, module), source in zip(modules.items(), sources, strict=True):
        for values, averaged in ((averages, True), (last, False)):
            tensors: Mapping[str, Any] = open_tensors(source, averaged, key)
            try:
                found = match(module, tensors)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from error
            values |= {part + path: converted(tensor, np.dtype(np.float32)) for path, tensor in found.items()}
        aside |= dead_tensors(module, tensors) if part == NETWORK else {}
        if wrong := [tensors[key].key for key, value in aside.items() if not np.isfinite(value).all()]:
            raise ValueError(f"{source}: {', '.join(wrong[:5])}: holds values that are not finite")
    return last, averages, aside


def import_regression(sources: list[Path], output: Path, experiment: Experiment, key: str = "") -> list[str]:
    """Released weights become the workdir of a run that is finished: `restore`, `evaluate` and `export` take it.

    Of MiOIR's two sets of parameters, the last ones and their averages, both are kept, so that `export` gives both
    back; only the last ones where the experiment keeps no average.

    Args:
        sources: the network's file, and for a conditional network that predicts its own condition the classifier's.
        experiment: says which network it is. A map of the tasks that it names is copied into the run, which then
            does not depend on that file.
        key: where the tensors are in pickled checkpoints, see `open_tensors`.

    Returns:
        What the user should know, one sentence each.

    Raises:
        FileExistsError: `output` is there already and not empty.
        FileNotFoundError, ValueError: a file that cannot be read or is of another network, values that are not
            finite, a file that is no map of the tasks; names file and key. Nothing is written.
    """
    require_empty(output)
    assert isinstance(experiment.model, RegressionConfig)
    network, notes = experiment.model.network, []
    if experiment.model.is_conditional and len(sources) < 2:
        experiment = replace(experiment, model=replace(experiment.model, condition_source="label"))
        notes.append("without a classifier's file, the degradation must be given: --task=NAME")
    maps = getattr(network, "task_maps", "")
    if maps:
        task_maps(maps)
    elif getattr(network, "prompts", "") == "explicit":
        notes.append(
            "prompts come from our own map of the tasks, right for weights that were trained with it; of a release's "
            "weights the outputs are then not the release's: give its map, --config.model.network.task_maps=type7.npy"
        )
    model = experiment.build()
    assert isinstance(model, RegressionModel)
    modules = _modules(model)
    if len(sources) != len(modules):
        raise ValueError(f"{len(sources)} files given, but {experiment.title} is made of {len(modules)}")
    stage = experiment.stages["regression"]
    last, averages, aside = _read_modules(modules, sources, key)
    assert last.keys() == averages.keys() == parameters.declared(model).keys()
    both = any(not np.array_equal(value, averages[path]) for path, value in last.items())
    kept = both and stage.ema_decay > 0
    if kept:
        notes.append(
            "the last parameters and their averages are kept; the averages are used, the others with --weights=last"
        )
    elif both:
        notes.append("the averages are left out, for this experiment keeps none (ema_decay is 0)")
    experiment = replace(
        experiment,
        stages={"regression": replace(stage, curriculum=(), ema_decay=stage.ema_decay if kept else 0.0)},
    )
    metadata = {
        "stage": "regression",
        "frozen_fingerprint": fingerprint({}),
        "ema": kept,
        **experiment.checkpoint_metadata,
    }
    mapping = to_mapping(experiment)
    if maps:
        mapping["model"]["network"]["task_maps"] = TASK_MAPS
    with atomic_outputs(output.resolve()) as (partial,):
        bind_workdir(partial, mapping)
        if maps:
            shutil.copyfile(maps, partial / TASK_MAPS)
        if aside:
            write_safetensors(partial / ASIDE, aside)
        with Checkpoints(checkpoint_folder(partial, "regression"), asynchronous=False) as checkpoints:
            checkpoints.save(stage.steps, {"trainable": last, "ema": averages if kept else {}}, None, metadata)
    return notes
