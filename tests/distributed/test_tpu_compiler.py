"""Programs compiled by the TPU's own compiler, for meshes of chips that are not in this machine."""

import json

import pytest

from tests.support.tpu_compiler import run_for_tpus

ATTENTION = """
import jax, jax.numpy as jnp, sys
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.distributed.topology import target_mesh
from mperceiver_jax.models.attention import attention

def slopes(q, k, v):
    return jax.grad(lambda *given: attention(*given, heads=8).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

for target, sizes, examples in (
    ("v5e:2x2", {}, 4),
    ("v5e:2x4", {"data": 2, "fsdp": 2, "model": 2}, 4),
    ("v5p:2x2x2", {"data": 2, "fsdp": 4}, 8),
    ("v6e:2x4", {"data": 2, "model": 4}, 3),
):
    mesh = target_mesh(target, MeshConfig(**sizes))
    divides = examples % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    spread = sharding.batch_sharding(mesh) if divides else sharding.replicated(mesh)
    tokens = jax.ShapeDtypeStruct((examples, 1024, 512), jnp.bfloat16, sharding=spread)
    text = jax.jit(sharding.traced_over(mesh, slopes)).lower(*[tokens] * 3).compile().as_text()
    print(target, text.count("tpu_custom_call"), "all-gather" in text)
"""


def test_attention_compiles_on_every_kind_of_mesh():
    lines = [line.split() for line in run_for_tpus("-c", ATTENTION).splitlines()]
    assert [line[0] for line in lines] == ["v5e:2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4"]
    # The flash kernel forward, and backward to the queries and to keys and values; examples stay where they are.
    assert all(int(line[1]) >= 3 for line in lines) and [line[2] for line in lines[:1]] == ["False"]


# The others take the compiler minutes on two cores.
SLOW = [pytest.param(program, marks=pytest.mark.slow) for program in ("vae", "prior", "dual_branch", "sampling")]


@pytest.mark.parametrize("program", ["predictor", "drm", *SLOW])
def test_programs_of_the_small_variant_compile_and_fit(program, tmp_path):
    output = tmp_path / "rows.json"
    run_for_tpus("-m", "benchmarks.tpu_programs", f"--programs={program}", f"--output={output}")
    (row,) = json.loads(output.read_text())
    assert row["fits"] == "yes" and "all-reduce" in row["collectives"]
    assert 0 < row["arguments, GiB"] < 1 and row["temporaries, GiB"] < 4


def test_a_slice_that_does_not_exist_is_named():
    text = run_for_tpus(
        "-c",
        """
from mperceiver_jax.distributed.topology import target_mesh
from mperceiver_jax.errors import ConfigError
try:
    target_mesh("v5e:3x5")
except ConfigError as error:
    print(error)
""",
    )
    assert text.startswith("v5e:3x5: no slice of TPUs that libtpu can describe")
