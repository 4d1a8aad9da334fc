"""The positions of all processes' data iterators, as JSON in a checkpoint."""

import json
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils


class DataIterator(Protocol):
    """The interface of a grain DatasetIterator: a position as a JSON value, or bytes."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


def gather_positions(iterator: DataIterator | None) -> list[Any]:
    """The positions of all processes, in process order, returned in every process; None for one without iterator."""
    position = None
    if iterator is not None:
        state = iterator.get_state()
        position = {"bytes": state.decode()} if isinstance(state, bytes) else {"json": state}
    if jax.process_count() == 1:
        return [position]
    text = np.frombuffer(json.dumps(position).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(text.size, np.int32))).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: text.size] = text
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [json.loads(bytes(row[:length])) for row, length in zip(gathered, lengths, strict=True)]


def set_position(iterator: DataIterator, positions: list[Any]) -> str | None:
    """Moves this process's iterator to the position that `gather_positions` recorded.

    With another number of processes, each takes its new share of the same batches, provided that all were at the
    same position: batches of `data_pipelines` do not depend on how many processes share them.

    Returns:
        None with as many processes as before, otherwise a sentence that says how the data continues.

    Raises:
        ValueError: no positions, or different ones for another number of processes.
    """
    here, there = jax.process_count(), len(positions)
    if any(position is None for position in positions):
        raise ValueError("holds no position in the data")
    mine = positions[jax.process_index() if here == there else 0]
    if here != there and any(position != mine for position in positions):
        raise ValueError(
            f"was written by {there} processes at different positions in their data, which do not carry "
            f"over to {here}; resume with {there} processes"
        )
    iterator.set_state(mine["bytes"].encode() if "bytes" in mine else mine["json"])
    if here == there:
        return None
    return (
        f"was written by {there} processes, now there are {here}: the data continues with the same batches, divided "
        "among these"
    )
