"""Stored features: complete or absent, read back exactly, and batches that can be continued."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.config import PipelineConfig
from data_pipelines.stored.features import FeatureStore, data_fingerprint_fields, feature_batches, part_path, write_part
from data_pipelines.stored.manifest import write_manifest

LAYOUT = {"lq": ((2, 2, 4), "bfloat16"), "embedding": ((3,), "float32")}


def example(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    moments = np.asarray(jnp.asarray(rng.standard_normal((2, 2, 4)), jnp.bfloat16))
    return {"lq": moments, "embedding": np.full(3, number, np.float32)}


@pytest.fixture
def folder(tmp_path):
    """Twelve examples: two parts of three examples on each of two hosts."""
    for part in range(2):
        for host in range(2):
            first = 6 * part + 3 * host
            write_part(tmp_path, part, host, [example(first + k) for k in range(3)], LAYOUT)
    write_manifest(tmp_path, {"parts": 2, "hosts": 2, "layout": LAYOUT})
    return tmp_path


def test_records_come_back_bit_by_bit_in_order(folder):
    store = FeatureStore(folder)
    assert len(store) == 12
    for number in (0, 4, 11):
        found, expected = store[number], example(number)
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name])


def test_batches_visit_everything_and_continue_exactly(folder):
    config = PipelineConfig(batch_size=4, threads=0, seed=3)
    numbers = lambda batches, count: [next(batches)["embedding"][:, 0].tolist() for _ in range(count)]
    with feature_batches(str(folder), config) as batches:
        everything = numbers(batches, 6)
        assert all(np.sort(np.ravel(epoch)).tolist() == list(range(12)) for epoch in (everything[:3], everything[3:]))
        assert everything[:3] != everything[3:]
        batches.set_state({"next_batch": 2})
        assert numbers(batches, 4) == everything[2:]
        assert next(batches)["lq"].dtype == jnp.bfloat16
    with feature_batches(str(folder), config, 0, 2) as one, feature_batches(str(folder), config, 1, 2) as two:
        assert [a + b for a, b in zip(numbers(one, 6), numbers(two, 6), strict=True)] == everything


def test_what_is_torn_or_missing_is_named(folder):
    with pytest.raises(ValueError, match=r"lq: float32 \(2, 2, 4\) does not fit bfloat16"):
        write_part(folder, 2, 0, [example(0) | {"lq": np.zeros((2, 2, 4), np.float32)}], LAYOUT)
    assert not part_path(folder, 2, 0).exists() and not list(folder.glob("*.partial"))
    write_manifest(folder, {"parts": 2, "hosts": 2, "layout": LAYOUT | {"embedding": ((4,), "float32")}})
    with pytest.raises(ValueError, match="record 5 has 44 bytes, not 48"):
        FeatureStore(folder)[5]
    part_path(folder, 1, 0).unlink()
    with pytest.raises(FileNotFoundError, match=r"part-00001-000\.array_record: this part .* is missing"):
        FeatureStore(folder)
    with pytest.raises(FileNotFoundError, match=r"note\.json is missing"):
        FeatureStore(folder / "elsewhere")


def test_a_damaged_file_is_named(folder):
    damaged = part_path(folder, 1, 0)
    content = bytearray(damaged.read_bytes())
    content[content.rindex(np.full(3, 7, np.float32).tobytes())] ^= 1
    damaged.write_bytes(content)
    store = FeatureStore(folder)
    with pytest.raises(ValueError, match=rf"{re.escape(str(damaged))}: damaged .*; delete the folder to make it again"):
        store[7]
    assert store[5]["embedding"].tolist() == [5, 5, 5]
    damaged.write_bytes(b"no records")
    with pytest.raises(ValueError, match=f"{re.escape(str(damaged))}: damaged"):
        FeatureStore(folder)


def test_only_what_changes_the_examples_decides():
    config = PipelineConfig(batch_size=4, crop=16)
    same = PipelineConfig(batch_size=4, crop=16, threads=9, workers=3, prefetch=1, cache_megabytes=1)
    assert (
        data_fingerprint_fields(config)
        == data_fingerprint_fields(same)
        != data_fingerprint_fields(PipelineConfig(batch_size=4, crop=32))
    )
