"""The device mesh, and which part of every array lies where.

Three axes: `data` (copies of the model, each with its part of the batch), `fsdp` (the
batch is divided here too, and so are large parameters) and `model` (tensor parallelism
of attention and feed-forward layers). Models know nothing of this file: XLA's
partitioner inserts the communication from the shardings of the step's arguments.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "model")
FSDP_THRESHOLD = 4 * 2**20

# Which dimension of a linear layer's (in, out) weight is divided over `model`: queries, keys, values
# and the first feed-forward layer by their outputs, the layers that close a block by their inputs, so
# that one sum over the axis per block suffices. The first pattern that is found in the path decides.
TENSOR_PARALLEL: tuple[tuple[str, int], ...] = (
    (r"\.to_(q|k|v)\.weight$", 1),
    (r"\.to_out\.0\.weight$", 0),
    (r"\.ff\.net\.0\.proj\.weight$", 1),
    (r"\.ff\.net\.2\.weight$", 0),
)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that remain."""

    data: int = -1
    fsdp: int = 1
    model: int = 1


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """The sizes of (data, fsdp, model) on this many devices.

    Raises:
        ValueError: a size below 1 that is not -1, more than one -1, or a product that is not `devices`.
    """
    sizes = [config.data, config.fsdp, config.model]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"mesh ({said}): sizes are positive, at most one is -1 (the devices that remain)")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes:
        if devices % known:
            raise ValueError(f"mesh ({said}): {devices} devices do not divide by {known}")
        sizes[sizes.index(-1)] = devices // known
    elif known != devices:
        raise ValueError(f"mesh ({said}): the sizes multiply to {known}, but there are {devices} devices")
    return sizes[0], sizes[1], sizes[2]


def device_grid(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """The devices as a (data, fsdp, model) array, neighbours in the network next to each other.

    Over several slices (devices with different `slice_index`) only the `data` axis crosses the
    slower network between them.

    Raises:
        ValueError: as `mesh_shape`, or `data` does not divide by the number of slices.
    """
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices)
    data, fsdp, model = shape
    if data % slices:
        raise ValueError(f"mesh: data={data} does not divide by the {slices} slices; only data crosses slices")
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, model), (slices, 1, 1), devices)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes ('data', 'fsdp', 'model') over all devices of all processes, or over those given.

    Raises:
        ValueError: the sizes do not fit the number of devices or slices.
    """
    grid = device_grid(config or MeshConfig(), jax.devices() if devices is None else devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension divided over `data` and `fsdp` together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def parameter_sharding(
    mesh: Mesh,
    path: str,
    shape: Sequence[int],
    dtype_size: int = 4,
    threshold: int = FSDP_THRESHOLD,
) -> NamedSharding:
    """Where a parameter, or a moment or average of one, lies.

    First tensor parallelism over `model` by `TENSOR_PARALLEL`, where the dimension divides. Then
    tensors above the threshold are divided over `fsdp` along their largest remaining dimension
    that divides. Everything else is replicated.

    Args:
        path: dotted path; only its end matters, so that an optimizer's `0.mu.unet...weight` goes with
            the parameter it belongs to.
        dtype_size: bytes per element.
        threshold: bytes above which a tensor is divided over `fsdp`.
    """
    axes: list[str | None] = [None] * len(shape)
    if mesh.shape["model"] > 1:
        for pattern, dimension in TENSOR_PARALLEL:
            if re.search(pattern, path):
                if dimension < len(shape) and shape[dimension] % mesh.shape["model"] == 0:
                    axes[dimension] = "model"
                break
    size = mesh.shape["fsdp"]
    if size > 1 and int(np.prod(shape)) * dtype_size > threshold:
        free = [i for i, length in enumerate(shape) if axes[i] is None and length % size == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(mesh, PartitionSpec(*axes))


def tree_sharding(mesh: Mesh, tree: Any, threshold: int = FSDP_THRESHOLD) -> Any:
    """`parameter_sharding` for every leaf of a pytree of arrays or ShapeDtypeStructs.

    Serves parameters (flat dicts) and optimizer states alike.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return parameter_sharding(mesh, name, np.shape(leaf), np.dtype(leaf.dtype).itemsize, threshold)

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract(mesh: Mesh, tree: Any, threshold: int = FSDP_THRESHOLD) -> Any:
    """The pytree as ShapeDtypeStructs that carry their shardings: for lowering and for restoring."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding),
        tree,
        tree_sharding(mesh, tree, threshold),
    )


def place(value: Any, sharding: NamedSharding, dtype: Any = None) -> jax.Array:
    """One array on the mesh. Every process holds the whole value; each device gets only its part."""
    if isinstance(value, jax.Array):
        return jax.device_put(value if dtype is None else value.astype(dtype), sharding)
    host = np.asarray(value) if dtype is None else np.asarray(value).astype(dtype)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def shard_params(
    mesh: Mesh, values: Mapping[str, Any], dtype: Any = None, threshold: int = FSDP_THRESHOLD
) -> dict[str, jax.Array]:
    """Parameters on the mesh, by `parameter_sharding`, cast first if a dtype is given."""
    placed = {}
    for path, value in values.items():
        itemsize = np.dtype(dtype or value.dtype).itemsize
        sharding = parameter_sharding(mesh, path, np.shape(value), itemsize, threshold)
        placed[path] = place(value, sharding, dtype)
    return placed


def data_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal parts of every global batch this process supplies.

    Processes that share their rows of the batch (the `model` axis crosses them) have the same
    index and must read the same examples.

    Raises:
        ValueError: the rows of two processes overlap without being the same.
    """
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["model"])):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    overlap = sum(map(len, parts)) != mesh.shape["data"] * mesh.shape["fsdp"]
    if overlap or len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)}: the processes' parts of a batch overlap or differ in size; choose a "
            "model size that divides the devices of a process, or is a multiple of them"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def to_global(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch from this process's part of it (`data_share`), divided as `batch_sharding`.

    Args:
        batch: arrays with the examples in the first dimension, the same number in every process.

    Raises:
        ValueError: the number of examples does not divide over the devices that share it.
    """
    sharding = batch_sharding(mesh)
    _, count = data_share(mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, value in batch.items():
        if value.shape[0] * count % ways:
            raise ValueError(
                f"batch: {name!r} has {value.shape[0] * count} examples, which do not divide over "
                f"data x fsdp = {ways}; make the batch size a multiple of it"
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, value, (value.shape[0] * count, *value.shape[1:]))
        for name, value in batch.items()
    }
