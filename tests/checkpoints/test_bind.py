"""Folders that belong to one identity."""

import pytest

from data_pipelines.stored.manifest import read_manifest
from mperceiver_jax.checkpoints.bind import bind, differences

IDENTITY = {"parameters": "abc", "sampler": {"name": "ddim", "steps": 20}, "sides": (1, 2)}
WORDS = {"contents": "latents", "remedy": "delete the folder"}


def test_a_folder_belongs_to_the_identity_that_bound_it_first(tmp_path):
    folder = tmp_path / "latents"
    bind(folder, IDENTITY, **WORDS)
    stored = read_manifest(folder)
    assert stored == IDENTITY | {"sides": [1, 2]}
    bind(folder, IDENTITY, **WORDS)
    other = IDENTITY | {"parameters": "abd", "sampler": {"name": "ddim", "steps": 10}}
    with pytest.raises(ValueError, match=r"made by another model .*\(parameters, sampler\.steps\); delete"):
        bind(folder, other, **WORDS)
    bind(folder, other, **WORDS, free=("parameters", "sampler.steps"))
    assert read_manifest(folder) == stored


def test_a_folder_with_other_files_is_not_bound(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and does not hold latents; name a new directory"):
        bind(tmp_path, IDENTITY, **WORDS)
    with pytest.raises(ValueError, match="does not hold latents"):
        bind(tmp_path / "thesis.tex", IDENTITY, **WORDS)


def test_fields_that_one_side_lacks_differ():
    found = [str(difference) for difference in differences({"a": {"b": 1}, "c": 1}, {"a": {}, "c": 1})]
    assert found == ["a: '(absent)' there, {} here", "a.b: 1 there, '(absent)' here"]
