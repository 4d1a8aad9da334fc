"""What whole runs in a test share: one device, a compilation cache, photographs."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from tests.support.tiny_experiment import write_photographs


@pytest.fixture(scope="module")
def one_device_and_a_cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        one = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
        patch.setattr(sharding, "make_mesh", lambda config: one)
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict[str, str]:
    """The fields that name two folders of small images."""
    folder = tmp_path_factory.mktemp("photographs")
    return {
        "data.images": str(write_photographs(folder / "train")),
        "data.heldout_images": str(write_photographs(folder / "heldout", seed=1)),
    }
