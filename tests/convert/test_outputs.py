"""Outputs of two processes at once, of one that fails, and beside what belongs to the user."""

import shutil

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.checkpoints.initial_params import trained_values
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory, write_pretrained
from mperceiver_jax.convert import restorer_checkpoints
from mperceiver_jax.convert.export import export
from mperceiver_jax.convert.restorer_checkpoints import export_regression, import_regression
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from tests.support.tiny_model import tiny_config
from tests.support.tiny_restorer_run import tiny_regression


def once(action):
    """A callback that acts when it is first called: another process, in the middle of ours."""
    pending = [action]
    return lambda *_: pending.pop()() if pending else None


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def started(model):
    return parameters.initial_values(model, 0, lambda path, value: value)


@pytest.mark.parametrize("form", ["release", "safetensors", "diffusers"])
def test_of_two_exports_to_one_output_one_is_there_whole_and_the_other_says_so(form, tmp_path):
    model = MPerceiver(tiny_config())
    values = started(model)
    name = "out" if form == "diffusers" else "out.safetensors"
    for folder in ("alone", "both"):
        (tmp_path / folder / f"{name}.partial").mkdir(parents=True)
        (tmp_path / folder / f"{name}.partial" / "thesis.tex").write_text("the user's own")
    export(model, values, tmp_path / "alone" / name, form)
    output = tmp_path / "both" / name
    with pytest.raises(FileExistsError, match=r"out.*another process"):
        export(model, values, output, form, "float16", once(lambda: export(model, values, output, form)))
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert f"{name}.partial/thesis.tex" in contents(tmp_path / "both")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_of_two_exports_of_a_restorer_one_is_there_whole(suffix, tmp_path):
    suffix == ".pth" and pytest.importorskip("torch")
    model = tiny_regression(prompts="explicit").build()
    first, second = started(model), {path: value + 1 for path, value in started(model).items()}
    output = tmp_path / f"out{suffix}"
    other = once(lambda: export_regression(model, second, output))
    with pytest.raises(FileExistsError, match=r"out.*another process"):
        export_regression(model, first, output, done=other)
    assert convert.read_torch(output)["conv_first.bias"][0] == second["network.conv_first.bias"][0]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_of_two_imports_of_a_restorer_one_is_there_whole(tmp_path, monkeypatch):
    experiment, output = tiny_regression(), tmp_path / "run"
    model = experiment.build()
    first, second = started(model), {path: value + 1 for path, value in started(model).items()}
    files = [
        export_regression(model, values, tmp_path / f"{k}.safetensors") for k, values in enumerate((first, second))
    ]
    other, claim = once(lambda: import_regression(files[1], output, experiment)), restorer_checkpoints.bind_workdir
    monkeypatch.setattr(restorer_checkpoints, "bind_workdir", lambda *given: (other(), claim(*given)))
    with pytest.raises(FileExistsError, match=r"run.*another process"):
        import_regression(files[0], output, experiment)
    kept = trained_values(output, "regression")
    assert all(np.array_equal(value, second[path]) for path, value in kept.items())
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_of_two_imports_one_is_there_whole(tmp_path):
    output, value = tmp_path / "pretrained", np.arange(3, dtype=np.float32)
    (tmp_path / "pretrained.partial").mkdir()

    def values():
        yield "a", value
        write_pretrained(output, [("a", value + 1)], [])
        yield "b", value

    with pytest.raises(FileExistsError, match="pretrained: another process"):
        write_pretrained(output, values(), [])
    assert {path: list(found) for path, found in PretrainedDirectory(output).values()} == {"a": [1, 2, 3]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pretrained", "pretrained.partial"]
    shutil.rmtree(output / "values" / "000")
    with pytest.raises(ValueError, match=r"pretrained: values/000 missing; remove the directory and import again"):
        PretrainedDirectory(output)


def test_a_link_as_output_means_what_it_points_to(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in ("empty", "absent"):
        (tmp_path / f"to_{target}").symlink_to(target)
        write_pretrained(tmp_path / f"to_{target}", [("a", np.ones(1, np.float32))], [])
        assert (tmp_path / f"to_{target}").is_symlink() and PretrainedDirectory(tmp_path / target).shapes == {"a": (1,)}
