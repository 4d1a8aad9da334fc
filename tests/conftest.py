"""Settings shared by all tests: eight virtual devices, little optimised compilation, and checked shapes."""

import os

import jaxtyping
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nothing is written into the cache directory of who runs the tests.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# Accelerators otherwise multiply with fewer bits than the tolerances of the tests allow.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Compile time is most of what the tests cost; less optimised code is quick enough for toy sizes.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)


# Annotated shapes and types of models and samplers are checked at every call, in every process that collects tests.
jaxtyping.install_import_hook(["mperceiver_jax.models", "mperceiver_jax.diffusion"], "beartype.beartype")


@pytest.fixture
def unchecked_shapes():
    """Switches the checks off, for tests of the messages of our own checks, which users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
