"""Settings shared by all tests: virtual devices, full-precision products, and the parity fixtures."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compile time is most of what the tests cost; less optimised code is quick enough for toy sizes.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
