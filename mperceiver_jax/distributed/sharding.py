"""The device mesh, and which part of every array lies on which device.

The mesh has three axes: `data` (copies of the model, each with its part of the batch), `fsdp` (the batch is
divided here too, and so are large parameters) and `model` (tensor parallelism of attention and feed-forward
layers, by rules). Models do not depend on this file: XLA's partitioner inserts the communication from the
shardings of the step's arguments, and kernels that it cannot divide find the mesh as the ambient one
(`traced_over`).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "model")
FSDP_THRESHOLD = 4 * 2**20

Rules = tuple[tuple[str, int], ...]
"""(regular expression of parameter paths, dimension that is divided over `model`); the first match decides."""

# Linear layers have (inputs, outputs) weights. Queries, keys, values and the first feed-forward layer are divided
# by their outputs, the layers that close a block by their inputs, so that one sum over the axis per block suffices.
MODEL_AXIS_RULES: Rules = (
    (r"\.(to_q|to_k|to_v|qkv)\.weight$|\.in_proj_weight$", 1),
    (r"\.(to_out\.0|out_proj)\.weight$|\.(input_blocks\.\d+|middle_block)\.\d+\.proj_out\.weight$", 0),
    (r"\.(ff\.net\.0\.proj|mlp\.c_fc)\.weight$", 1),
    (r"\.(ff\.net\.2|mlp\.c_proj)\.weight$", 0),
)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, and what the `model` axis divides.

    Attributes:
        data, fsdp, model: sizes; one of them may be -1 and takes the devices that remain.
        rules: (regular expression of parameter paths, dimension divided over `model`). The first expression found
            in a path decides; parameters that match none are not divided over `model`.
    """

    data: int = field(default=-1, metadata={"negative": True})
    fsdp: int = field(default=1, metadata={"negative": True})
    model: int = field(default=1, metadata={"negative": True})
    rules: Rules = MODEL_AXIS_RULES

    def __post_init__(self) -> None:
        for pattern, dimension in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rules: {pattern!r} is not a regular expression ({error})") from error
            if dimension < 0:
                raise ValueError(f"rules: the dimension of {pattern!r} is {dimension}, but counts from 0")


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """The sizes of (data, fsdp, model) on this many devices.

    Raises:
        ValueError: a size below 1 that is not -1, more than one -1, or a product that is not `devices`.
    """
    sizes = [config.data, config.fsdp, config.model]
    given = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"mesh ({given}): sizes are positive, at most one is -1 (the devices that remain)")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes:
        if devices % known:
            raise ValueError(f"mesh ({given}): {devices} devices do not divide by {known}")
        sizes[sizes.index(-1)] = devices // known
    elif known != devices:
        raise ValueError(f"mesh ({given}): the sizes multiply to {known}, but there are {devices} devices")
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


def traced_over(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced with `mesh` as the ambient mesh. Kernels that XLA cannot divide are divided by it."""

    @functools.wraps(function)
    def traced(*inputs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*inputs)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension divided over `data` and `fsdp` together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@dataclass(frozen=True)
class ParameterLayout:
    """How parameters, and the state of an optimizer, are laid out on a mesh.

    First `model` divides the dimension that the rules name, where its length divides. Then tensors above the
    threshold are divided over `fsdp` along their largest remaining dimension that divides. Everything else is
    replicated.

    Attributes:
        rules: see `MeshConfig`.
        threshold: bytes above which a tensor is divided over `fsdp`.
    """

    mesh: Mesh
    rules: Rules = MODEL_AXIS_RULES
    threshold: int = FSDP_THRESHOLD

    def sharding(self, path: str, shape: Sequence[int], dtype_size: int = 4) -> NamedSharding:
        """The sharding of a parameter, or of a moment or average of one.

        Args:
            path: dotted path; an optimizer's `0.mu.unet...weight` is sharded like the parameter it belongs to.
            dtype_size: bytes per element.
        """
        axes: list[str | None] = [None] * len(shape)
        dimension = self._model_dimension(path)
        if dimension is not None and dimension < len(shape) and shape[dimension] % self.mesh.shape["model"] == 0:
            axes[dimension] = "model"
        size = self.mesh.shape["fsdp"]
        if size > 1 and int(np.prod(shape)) * dtype_size > self.threshold:
            free = [i for i, length in enumerate(shape) if axes[i] is None and length % size == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = "fsdp"
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _model_dimension(self, path: str) -> int | None:
        if self.mesh.shape["model"] == 1:
            return None
        return next((dimension for pattern, dimension in self.rules if re.search(pattern, path)), None)

    def tree(self, tree: Any) -> Any:
        """The sharding of every leaf of a pytree of arrays or ShapeDtypeStructs: parameters or optimizer states."""

        def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return self.sharding(name, np.shape(leaf), np.dtype(leaf.dtype).itemsize)

        return jax.tree_util.tree_map_with_path(leaf_sharding, tree)

    def abstract(self, tree: Any) -> Any:
        """The pytree as ShapeDtypeStructs with their shardings, for lowering and for restoring."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding),
            tree,
            self.tree(tree),
        )

    def place(self, path: str, value: Any, dtype: Any = None) -> jax.Array:
        """One parameter on the mesh, cast first if a dtype is given."""
        itemsize = np.dtype(dtype or value.dtype).itemsize
        return place(value, self.sharding(path, np.shape(value), itemsize), dtype)

    def place_all(self, values: Mapping[str, Any], dtype: Any = None) -> dict[str, jax.Array]:
        """Parameters on the mesh, cast first if a dtype is given."""
        return {path: self.place(path, value, dtype) for path, value in values.items()}


def place(value: Any, sharding: NamedSharding, dtype: Any = None) -> jax.Array:
    """One array on the mesh. Every process holds the whole value; each device gets only its part."""
    if isinstance(value, jax.Array):
        return jax.device_put(value if dtype is None else value.astype(dtype), sharding)
    host = np.asarray(value) if dtype is None else np.asarray(value).astype(dtype)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def local_rows(value: jax.Array, first: int, count: int) -> np.ndarray:
    """This process's rows of an array that is divided by rows over the mesh.

    Args:
        first, count: the rows, where this process holds the whole array.
    """
    if value.is_fully_addressable:
        return np.asarray(value)[first : first + count]
    rows = {shard.index[0].start or 0: np.asarray(shard.data) for shard in value.addressable_shards}
    return np.concatenate([rows[start] for start in sorted(rows)])


def data_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process supplies part `index` of `count` equal parts of every global batch.

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
