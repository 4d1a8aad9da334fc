"""Stored examples: complete or absent, and batches of them that every number of hosts shares alike."""

import numpy as np
import pytest

from data_pipelines.pipeline import PipelineConfig
from data_pipelines.stored.examples import (
    StoredExamples,
    example_path,
    read_note,
    stored_batches,
    write_example,
    write_manifest,
)

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        image = rng.random((4, 4, 3), np.float32)
        latent = np.full((2, 2, 4), index - 0.5, np.float32)
        write_example(folder, index, {"lq": image, "gt": 1 - image, "latent": latent, "task": np.int32(index)})
    return folder


def test_examples_come_back(folder, tmp_path):
    image = np.linspace(-0.5, 1.5, 48, dtype=np.float32).reshape(4, 4, 3)
    write_example(tmp_path, 3, {"lq": image, "latent": image})
    with np.load(example_path(tmp_path, 3)) as stored:
        assert stored["lq"].dtype == np.uint16
    with pytest.raises(FileNotFoundError, match=r"0000000\.npz: no such stored example"):
        StoredExamples(str(tmp_path), 1)
    example = StoredExamples(str(folder), COUNT)[5]
    assert {name: value.dtype.name for name, value in example.items()} == {
        "lq": "float32",
        "gt": "float32",
        "latent": "float32",
        "task": "int32",
    }
    np.testing.assert_allclose(example["lq"] + example["gt"], 1, atol=1 / 65535)
    np.testing.assert_array_equal(example["latent"], 4.5)


def test_an_example_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError):
        write_example(tmp_path, 0, {"latent": np.array([object()])})
    assert list(tmp_path.iterdir()) == []
    example_path(tmp_path, 0).write_bytes(b"PK torn")
    with pytest.raises(ValueError, match=r"0000000\.npz: not a readable stored example .*delete it"):
        StoredExamples(str(tmp_path), 1)[0]


def tasks(batches, number):
    return [next(batches)["task"].tolist() for _ in range(number)]


def test_batches_visit_everything_continue_exactly_and_do_not_depend_on_the_hosts(folder):
    config = PipelineConfig(batch_size=4, threads=0, seed=3)
    with stored_batches(str(folder), COUNT, config) as batches:
        assert next(batches)["lq"].shape == (4, 4, 4, 3)
        batches.set_state({"next_batch": 0})
        everything = tasks(batches, 6)
        assert np.sort(everything[:3], axis=None).tolist() == list(range(COUNT))
        assert np.sort(everything[3:], axis=None).tolist() == list(range(COUNT))
        assert everything[:3] != everything[3:]
        batches.set_state({"next_batch": 2})
        assert tasks(batches, 4) == everything[2:]
    with (
        stored_batches(str(folder), COUNT, config, 0, 2) as first,
        stored_batches(str(folder), COUNT, config, 1, 2) as second,
    ):
        shared = [a + b for a, b in zip(tasks(first, 6), tasks(second, 6), strict=True)]
    assert shared == everything
    with stored_batches(str(folder), COUNT, PipelineConfig(batch_size=4, threads=0, seed=4)) as other:
        assert tasks(other, 6) != everything


def test_notes(tmp_path):
    assert read_note(tmp_path) is None
    write_manifest(tmp_path / "new", {"seed": 1, "sampler": {"steps": 4}})
    assert read_note(tmp_path / "new") == {"seed": 1, "sampler": {"steps": 4}}
