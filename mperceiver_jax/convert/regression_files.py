"""Restorers by regression as their releases store them: read into a run that can be used, and written from one.

    PromptIR, AM-PromptIR   Lightning's: {'state_dict': {'net.KEY': tensor}}         .ckpt
    PIP                     {'params': {KEY: tensor}, 'epoch': number}               .pkl
    MiOIR                   {'params': {KEY: tensor}, 'params_ema': {KEY: tensor}}   .pth

Every tensor that the original module declares is written, dead ones and buffers included, so that it loads
strictly. A file NAME.safetensors holds the same tensors without a container. A classifier beside the network
goes into a file of its own, NAME.classifier.SUFFIX.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mperceiver_jax.config import Experiment, to_mapping
from mperceiver_jax.convert.safetensors_writer import rounded
from mperceiver_jax.convert.state_dicts import from_torch, to_torch
from mperceiver_jax.convert.torch_files import open_tensors, write_safetensors
from mperceiver_jax.models import parameters
from mperceiver_jax.models.regression import RegressionConfig, RegressionModel
from mperceiver_jax.training.checkpoints import Checkpoints
from mperceiver_jax.training.fingerprint import fingerprint
from mperceiver_jax.training.weights import checkpoint_folder
from mperceiver_jax.training.workdir import claim_workdir

State = dict[str, np.ndarray]
SUFFIXES = (".safetensors", ".ckpt", ".pkl", ".pth", ".pt")
NETWORK, CLASSIFIER = "network.", "classifier."


def state_dict(model: RegressionModel, values: Mapping[str, Any], part: str, dtype: str = "float32") -> State:
    """The state dict of one part of a model under the release's keys, complete.

    Args:
        part: `NETWORK` or `CLASSIFIER`.
        dtype: of the floating-point numbers, rounded to the nearest.

    Raises:
        ValueError: the part has no released form; values that are not finite, or too large for the dtype.
    """
    module: nnx.Module = model.network if part == NETWORK else model.classifier
    own = {path.removeprefix(part): np.asarray(values[path]) for path in values if path.startswith(part)}
    wide = np.dtype(jnp.dtype(dtype))
    return {
        key: rounded(key, value, wide) if np.issubdtype(value.dtype, np.floating) else value
        for key, value in to_torch(module, own).items()
    }


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
) -> list[Path]:
    """Writes a model for PyTorch; returns the files, the network's first. All appear complete or not at all.

    Args:
        output: NAME.safetensors, or with the release's container NAME.ckpt, .pkl, .pth or .pt (needs torch).
        averages: moving averages of the parameters, for the containers that have a place for them.
        epoch: noted in containers that have a place for it.
        done: told the number of parameters that are written.

    Raises:
        FileExistsError: there is something at `output`, or beside it, already.
        ValueError: another suffix, or as `state_dict`; torch is not installed and is needed.
    """
    if output.suffix not in SUFFIXES:
        raise ValueError(f"--output={output}: a file of this model must end in one of {', '.join(SUFFIXES)}")
    parts = {NETWORK: output}
    if hasattr(model, "classifier"):
        parts[CLASSIFIER] = output.with_name(f"{output.stem}.classifier{output.suffix}")
    for path in parts.values():
        if path.exists():
            raise FileExistsError(f"{path} exists already; move it away, or name another --output")
    states = {part: state_dict(model, values, part, dtype) for part in parts}
    output.parent.mkdir(parents=True, exist_ok=True)
    # The classifier first: where the network's file is, both are complete.
    for part, path in reversed(parts.items()):
        if path.suffix == ".safetensors":
            write_safetensors(path, states[part])
        else:
            average = None if averages is None else state_dict(model, averages, part, dtype)
            # The classifier is MiOIR's, whatever the network is.
            family = model.config.family if part == NETWORK else "classifier"
            _write_pickled(path, container(family, states[part], average, epoch))
        done(sum(key.startswith(part) for key in values))
    return list(parts.values())


def _write_pickled(path: Path, content: Mapping[str, Any]) -> None:
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"--output={path}: writing {path.suffix} needs torch; take NAME.safetensors") from error

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(item) for key, item in value.items()}
        if isinstance(value, np.ndarray) and value.dtype == jnp.bfloat16:
            return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value

    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(tensors(content), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def import_regression(sources: list[Path], output: Path, experiment: Experiment) -> list[str]:
    """Released weights become the workdir of a run that is finished: `restore`, `evaluate` and `export` take it.

    Args:
        sources: the network's file, and where the network must be told what is wrong and shall not be told by
            whoever uses it, the classifier's.
        experiment: says which network it is.

    Returns:
        What the user should know, one sentence each.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read or is of another network; a workdir in use.
    """
    assert isinstance(experiment.model, RegressionConfig)
    notes = []
    if experiment.model.is_told and len(sources) < 2:
        experiment = replace(experiment, model=replace(experiment.model, told_by="label"))
        notes.append("without a classifier's file, what is wrong with a picture must be given: --task=NAME")
    model = experiment.build()
    assert isinstance(model, RegressionModel)
    modules = {NETWORK: model.network} | ({CLASSIFIER: model.classifier} if hasattr(model, "classifier") else {})
    if len(sources) != len(modules):
        raise ValueError(f"{len(sources)} files given, but {experiment.title} is made of {len(modules)}")
    values: State = {}
    for (part, module), source in zip(modules.items(), sources, strict=True):
        try:
            found = from_torch(module, dict(open_tensors(source)))  # type: ignore[arg-type]  # read when asked for
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        values |= {part + path: np.asarray(value, np.float32, order="C") for path, value in found.items()}
    assert values.keys() == parameters.declared(model).keys()
    stage = experiment.stages["regression"]
    experiment = replace(experiment, stages={"regression": replace(stage, curriculum=(), ema_decay=0.0)})
    claim_workdir(output, to_mapping(experiment))
    metadata = {"stage": "regression", "priors": fingerprint({}), "ema": False, **experiment.form}
    with Checkpoints(checkpoint_folder(output, "regression"), asynchronous=False) as checkpoints:
        checkpoints.save(stage.steps, {"trainable": values, "ema": {}}, None, metadata)
    return notes
