"""Reading and writing tensor files."""

import numpy as np
import pytest

from mperceiver_jax import convert

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.asarray(2.5, np.float32),
    "half": np.asarray([1.5, -2.0], np.float16),
    "ids": np.asarray([[1, 2]], np.int64),
}


def test_written_files_are_read_back_exactly(tmp_path):
    path = tmp_path / "weights.safetensors"
    convert.write_safetensors(path, TENSORS)
    found = convert.read_torch(str(path))
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert np.array_equal(found[key], value)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_torch_reads_what_we_write_and_the_other_way_round(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    convert.write_safetensors(ours, TENSORS)
    assert np.array_equal(load_file(ours)["transposed"].numpy(), TENSORS["transposed"])
    save_file({"x": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5, 3.0], dtype=torch.bfloat16)}, theirs)
    found = convert.read_torch(theirs)
    assert list(found["x"]) == [1.0, 2.0]
    assert list(found["b"].astype(np.float32)) == [0.5, 3.0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    convert.write_safetensors(path, TENSORS)
    with pytest.raises(Exception):  # noqa: B017  (whatever safetensors raises for objects)
        convert.write_safetensors(path, {"bad": np.asarray([object()])})
    assert convert.read_torch(path).keys() == TENSORS.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors: no such file"):
        convert.read_torch(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError):
        convert.read_torch(tmp_path)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ""])
def test_files_that_could_hold_code_are_not_opened(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"only \.safetensors"):
        convert.read_torch(path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-4], lambda data: data[:20], lambda data: b"", lambda data: b"PK\x03\x04" * 30],
)
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    convert.write_safetensors(path, TENSORS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"weights\.safetensors: damaged"):
        convert.read_torch(path)
