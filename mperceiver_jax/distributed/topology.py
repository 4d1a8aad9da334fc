"""Meshes of TPU chips that are not in this machine: their compiler, part of libtpu, runs on any Linux host."""

import importlib.util
import os

from jax.experimental import topologies
from jax.sharding import Mesh

from mperceiver_jax.distributed.sharding import MeshConfig, make_mesh
from mperceiver_jax.errors import ConfigError

MEMORY_GIB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
"""High-bandwidth memory of a device by its kind, in GiB, as the vendor states it."""


def target_mesh(target: str, config: MeshConfig | None = None) -> Mesh:
    """A mesh over the chips of a slice, for lowering and compiling programs ahead of time.

    JAX must run on the CPU here (JAX_PLATFORMS=cpu): the chips are only described.

    Args:
        target: kind and shape of the slice, such as v5e:2x4, v5p:2x2x2 or v6e:4x4.
        config: sizes of the axes.

    Raises:
        ConfigError: libtpu is not installed, it knows no such slice, or the mesh does not fit the number of chips.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the compiler for TPUs is not installed: pip install 'mperceiver-jax[tpu]'")
    # libtpu otherwise asks the metadata server of a TPU host, and admits one process at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{target}: no slice of TPUs that libtpu can describe ({error})") from error
    try:
        return make_mesh(config, devices)
    except ValueError as error:
        raise ConfigError(f"{target}: {error}") from error
