"""Checkpoints of a training run, written and read by Orbax.

A checkpoint is a directory `<directory>/<step>` with one Orbax item per entry of the
state (`trainable`, `opt_state`, `ema`: written by all processes, each its own shards)
and one JSON item, `record`: dtypes and shapes of the leaves, the caller's metadata, and the
position of every process's data iterator. Leaves are stored under their dotted paths, so that
reading a checkpoint needs neither the optimizer's classes nor the mesh it was written on,
and `ema` alone can be read for restoring images.

A checkpoint is written under a temporary name and renamed when every process is done.
Incomplete directories are never chosen.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from data_pipelines.messages import shorten_list
from mperceiver_jax.checkpoints import directory as checkpoint_directory
from mperceiver_jax.checkpoints.data_iterator import DataIterator, gather_positions, set_position
from mperceiver_jax.checkpoints.leaves import differences, forms, named_leaves, own_copies, restore_args
from mperceiver_jax.distributed.runtime import on_first_process


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read, or does not fit. The message names it and the reason."""


class DamagedCheckpoint(CheckpointError):
    """The files of a checkpoint cannot be read."""


class RestoredState(NamedTuple):
    """The result of `Checkpoints.restore`.

    Attributes:
        state: the tree of the abstract state, arrays under its shardings, which may be donated.
        metadata: the caller's, as saved.
        note: None where the data continues exactly; otherwise a sentence that says how it continues.
    """

    state: dict[str, Any]
    metadata: dict[str, Any]
    note: str | None


class _Manager(ocp.CheckpointManager):
    """Leaves preemption to the training loop: Orbax would otherwise ask JAX's service, too, from its own threads and
    with older steps, while the service expects one increasing count."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints in one directory. In a distributed run every process makes the same calls.

    Args:
        directory: created if it does not exist; all processes must see the same one (`gs://` works).
        keep: number of the newest that are kept.
        keep_best: number of the best by `best_metric` that are also kept.
        best_metric: name in the `metrics` of `save`; higher is better. None tracks no best.
        asynchronous: write in the background. The arrays are copied before `save` returns, so that
            they may be donated at once.
        read_only: change nothing, not even leftovers of an interrupted save.

    Raises:
        CheckpointError: the directory cannot be used.
        FileNotFoundError: `read_only`, and it does not exist.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        keep_best: int = 1,
        best_metric: str | None = None,
        asynchronous: bool = True,
        read_only: bool = False,
    ):
        if keep < 1:
            raise ValueError(f"checkpoints: keep={keep}, but at least one is needed to resume from")
        path = epath.Path(directory).expanduser()
        self.directory = path if "://" in os.fspath(directory) else path.absolute()
        self._best_metric = best_metric
        self._pending: int | None = None
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(f"there are no checkpoints at {self.directory}: no such directory")
        keepers: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if best_metric is not None and keep_best:
            keepers.append(
                policies.BestN(get_metric_fn=self._score, n=keep_best, keep_checkpoints_without_metrics=False)
            )
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keepers),
            best_fn=None if best_metric is None else self._score,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
            enable_async_checkpointing=asynchronous,
            # In the background, a directory that cannot be created shows only after minutes of waiting.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            read_only=read_only,
        )
        try:
            if not read_only:
                on_first_process(lambda: checkpoint_directory.prepare(self.directory))
            self._manager = _Manager(self.directory, options=self._options)
        except Exception as error:
            raise CheckpointError(f"cannot keep checkpoints in {self.directory}: {_reason(error)}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()

    # Saving.

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        data_iterator: DataIterator | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Saves after waiting for the save before this one.

        Args:
            step: the checkpoint's number.
            state: {name: pytree of arrays}; entries without leaves are left out. In a distributed run
                arrays are global (or numpy, the same in every process).
            data_iterator: this process's; its position after the batch of `step`.
            metadata: a JSON value.
            metrics: numbers by which the best is chosen.
            force: replace a checkpoint of this step that exists (to give it metrics, for example). This
                waits until the new one is there; the old one is lost only then.

        Returns:
            False if a complete checkpoint of this step existed and `force` was not given.

        Raises:
            CheckpointError: this save, or the one before in the background, failed. Names the step, the
                directory and the reason. Complete checkpoints stay as they are.
        """
        self.wait()
        replace = step in self.steps()
        if replace:
            if not force:
                return False
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("all processes have seen what will be replaced")
            on_first_process(lambda: checkpoint_directory.move_away(self.directory, step))
            self._manager.reload()
        items = {name: dict(named_leaves(tree)) for name, tree in state.items()}
        record = {
            "metadata": dict(metadata or {}),
            "iterators": gather_positions(data_iterator),
            "leaves": {name: forms(leaves) for name, leaves in items.items()},
        }
        args = {name: ocp.args.PyTreeSave(leaves) for name, leaves in items.items() if leaves}
        args[checkpoint_directory.RECORD] = ocp.args.JsonSave(record)
        numbers = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        self._pending = step
        composite = ocp.args.Composite(**args)
        self._attempt(step, lambda: self._manager.save(step, args=composite, metrics=numbers, force=True))
        if replace:
            self.wait()
            on_first_process(lambda: checkpoint_directory.remove_replaced(self.directory))
        return True

    def wait(self) -> None:
        """Returns when no write is in progress any more.

        Raises:
            CheckpointError: the checkpoint could not be written.
        """
        if self._pending is not None:
            self._attempt(self._pending, self._manager.wait_until_finished)
            self._pending = None

    def close(self) -> None:
        """Waits, then releases Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    # Listing.

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in increasing order."""
        return checkpoint_directory.complete_steps(self.directory)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """The step with the highest `best_metric`, the later of equals; None if none has the metric."""
        scores = [(self._score(metrics), step) for step in self.steps() if (metrics := self.metrics(step))]
        return max(scores)[1] if scores and self._best_metric else None

    def entries(self, step: int) -> list[str]:
        """Names of the entries of the state that a checkpoint holds."""
        return sorted(name for name, leaves in self._record(step)["leaves"].items() if leaves)

    def metadata(self, step: int) -> dict[str, Any]:
        """The caller's metadata of a checkpoint, without reading arrays."""
        return self._record(step)["metadata"]

    def metrics(self, step: int) -> dict[str, float] | None:
        return self._manager.metrics(step) if self._best_metric else None

    # Restoring.

    def restore(
        self, step: int, abstract: Mapping[str, Any], data_iterator: DataIterator | None = None
    ) -> RestoredState:
        """The state of a checkpoint, on whatever mesh `abstract` names.

        The data iterator is moved to the position it had; with another number of processes see `set_position` and
        the note of the result.

        Args:
            abstract: {name: pytree} of ShapeDtypeStructs (or arrays) with shardings; leaves without a
                sharding come back as numpy arrays. Entries of the checkpoint not named here are not read.

        Raises:
            CheckpointError: no such checkpoint; leaves missing, unexpected, or of another shape or dtype;
                a data position that does not fit.
        """
        record = self._record(step)
        structures = {name: jax.tree.structure(tree) for name, tree in abstract.items()}
        wanted = {name: dict(named_leaves(tree)) for name, tree in abstract.items()}
        for name, leaves in wanted.items():
            self._compare(step, name, record["leaves"].get(name, {}), leaves)
        state: dict[str, Any] = {}
        for name, leaves in wanted.items():
            values = self._read(step, name, {leaf: restore_args(value) for leaf, value in leaves.items()})
            owned = own_copies({leaf: value for leaf, value in values.items() if isinstance(value, jax.Array)})
            state[name] = jax.tree.unflatten(structures[name], [(values | owned)[leaf] for leaf in leaves])
        note = None
        if data_iterator is not None:
            where = f"checkpoint {self.directory / str(step)}"
            try:
                note = set_position(data_iterator, record["iterators"])
            except ValueError as error:
                raise CheckpointError(f"{where} {error}") from None
            note = note and f"{where} {note}"
        return RestoredState(state, record["metadata"], note)

    def restore_params_only(self, step: int, name: str) -> dict[str, np.ndarray]:
        """One entry of the state as {path: numpy array}: 'ema' or 'trainable' for using a model.

        It needs no mesh and reads nothing else.

        Raises:
            CheckpointError: no such checkpoint, or no such entry in it.
        """
        leaves = self._record(step)["leaves"]
        if not leaves.get(name):
            where = self.directory / str(step)
            raise CheckpointError(f"checkpoint {where} has no {name!r}; it has {', '.join(self.entries(step))}")
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        return self._read(step, name, dict.fromkeys(leaves[name], as_numpy))

    def set_aside(self, step: int) -> epath.Path:
        """Renames a checkpoint that cannot be read; returns its new path. For one process."""
        path = checkpoint_directory.set_aside(self.directory, step)
        self._manager.reload()
        return path

    # Internals.

    def _attempt(self, step: int, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._pending = None
            if jax.process_count() == 1:
                # The manager still counts the failed step as written; a new one reads the disk.
                self._manager = self._reopened()
            raise CheckpointError(
                f"cannot save checkpoint {step} in {self.directory}: {_reason(error)}. "
                f"Complete checkpoints there: {self.steps() or 'none'}"
            ) from error

    def _reopened(self) -> _Manager:
        with contextlib.suppress(Exception):
            self._manager.close()
        try:
            checkpoint_directory.prepare(self.directory)
            return _Manager(self.directory, options=self._options)
        except Exception:
            return self._manager

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self._best_metric or "", -math.inf)
        return -math.inf if math.isnan(value) else value

    def _record(self, step: int) -> dict[str, Any]:
        record = checkpoint_directory.read_record(self.directory, step)
        if record is None:
            raise CheckpointError(
                f"{self.directory} has no complete checkpoint {step}; it has {self.steps() or 'none'}"
            )
        return record

    def _read(self, step: int, name: str, leaves: Mapping[str, ocp.RestoreArgs]) -> dict[str, Any]:
        if not leaves:
            return {}
        try:
            args = ocp.args.Composite(**{name: ocp.args.PyTreeRestore(restore_args=dict(leaves))})
            return self._manager.restore(step, args=args)[name]
        except Exception as error:
            where = self.directory / str(step) / name
            raise DamagedCheckpoint(
                f"cannot read {where}: {_reason(error)}. Checkpoints there: {self.steps()}; move {step} away"
            ) from error

    def _compare(self, step: int, name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if problems := differences(stored, wanted):
            raise CheckpointError(
                f"{name!r} of checkpoint {self.directory / str(step)} does not fit this run: "
                + shorten_list(problems, 10, "; ")
            )


def _reason(error: BaseException) -> str:
    """The innermost cause in one line. Tensorstore hides the error number of the system among file names."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    if number := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(number[1]))
    return text if len(text) <= 300 else text[:300] + "..."
