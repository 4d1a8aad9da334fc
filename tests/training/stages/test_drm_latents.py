"""Sampled latents belong to one model; every process stores its own examples (whole runs: test_run.py)."""

import jax
import numpy as np
import pytest

from data_pipelines.stored.examples import read_note
from mperceiver_jax.distributed import sharding
from mperceiver_jax.training.stages import drm_latents

NOTE = {"parameters": "abc", "sampler": {"name": "ddim", "steps": 20}, "seed": 1, "crop": 64}


def test_latents_of_another_model_or_sampler_are_refused_with_the_way_out(tmp_path):
    folder = tmp_path / "drm_latents"
    drm_latents._claim(folder, NOTE)
    assert read_note(folder) == NOTE
    drm_latents._claim(folder, NOTE)
    other = NOTE | {"parameters": "abd", "sampler": {"name": "ddim", "steps": 10}}
    with pytest.raises(ValueError, match=r"\(differing: parameters, sampler\); delete the folder"):
        drm_latents._claim(folder, other)
    assert read_note(folder) == NOTE


def test_own_rows_of_a_divided_array():
    mesh = sharding.make_mesh()
    value = np.arange(32.0).reshape(16, 2)
    divided = jax.device_put(value, sharding.batch_sharding(mesh))
    np.testing.assert_array_equal(drm_latents.local_rows(divided, 4, 8), value[4:12])
