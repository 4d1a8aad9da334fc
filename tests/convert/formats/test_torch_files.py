"""Reading and writing tensor files."""

import argparse
import contextlib
import gzip
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.formats import torch_files

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


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.h5: a file of another kind; .*\.safetensors, \.ckpt"):
        convert.read_torch(tmp_path / "weights.h5")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth"])
def test_pickles_are_read_for_their_tensors(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    tensors = {key: torch.from_numpy(value) for key, value in TENSORS.items()}
    tensors["brain"] = torch.tensor([[0.5, 3.0]], dtype=torch.bfloat16).T
    torch.save(tensors, path)
    found = convert.read_torch(path)
    assert found.keys() == tensors.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype and np.array_equal(found[key], value), key
    assert found["brain"].shape == (2, 1) and list(found["brain"].astype(np.float32)[:, 0]) == [0.5, 3.0]
    # The format before 2020, which cannot be mapped.
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert np.array_equal(convert.read_torch(path)["matrix"], TENSORS["matrix"])


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_pickles_is_not_run(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, victim = tmp_path / "weights.ckpt", tmp_path / "victim"
    content = {"state_dict": {"a": torch.ones(1)}, "callbacks": Harm(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"weights\.ckpt: damaged, or holds more than tensors.*open"):
        convert.read_torch(path)
    assert not victim.exists()


def test_what_lightning_leaves_beside_the_tensors_is_passed_over(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    exec("class ModelCheckpoint: pass\nclass LooseDict(dict): pass", module.__dict__)
    packages = ["pytorch_lightning", "pytorch_lightning.callbacks", name]
    for package in packages:
        monkeypatch.setitem(sys.modules, package, module if package == name else types.ModuleType(package))
    state = module.ModelCheckpoint()
    state.best = 0.5
    loose = module.LooseDict(rate=1e-4)
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {module.ModelCheckpoint: state}, "hyper": loose}
    torch.save(content, tmp_path / "weights.ckpt")
    for package in packages:
        monkeypatch.delitem(sys.modules, package)
    assert list(convert.read_torch(tmp_path / "weights.ckpt")["a"]) == [1, 1]


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda data: data[:30], lambda data: b""])
def test_damaged_pickles_are_named(tmp_path, damage):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.ckpt"
    torch.save({"a": torch.ones(500)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"weights\.ckpt: damaged"):
        convert.read_torch(path)


def test_tensors_larger_than_their_file_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt: a claims .* bytes, more than the file has"):
        convert.read_torch(tmp_path / "bomb.pt")


def test_compressed_archives_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"bomb\.pt: compressed"):
        convert.read_torch(tmp_path / "bomb.pt")


def test_shards_are_read_by_their_index(tmp_path):
    convert.write_safetensors(tmp_path / "m-1-of-2.safetensors", {"a": TENSORS["matrix"]})
    convert.write_safetensors(tmp_path / "m-2-of-2.safetensors", {"b": TENSORS["half"]})
    index = tmp_path / "m.safetensors.index.json"
    places = {"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = convert.read_torch(index)
    assert found.keys() == {"a", "b"} and np.array_equal(found["b"], TENSORS["half"])
    # A prefix is taken off the whole, not off a shard that happens to have it everywhere.
    convert.write_safetensors(tmp_path / "net.safetensors", {"net.c": TENSORS["half"]})
    index.write_text(json.dumps({"weight_map": places | {"net.c": "net.safetensors"}}))
    assert convert.read_torch(index).keys() == {"a", "b", "net.c"}
    for bad, told in [
        (json.dumps({"weight_map": {**places, "c": "m-1-of-2.safetensors"}}), r"c should be in m-1-of-2"),
        (json.dumps({"weight_map": {"a": "../secret.safetensors"}}), r"not shards in the same folder"),
        (json.dumps({"weight_map": {"a": 3}}), r"damaged"),
        ("{", r"damaged"),
    ]:
        index.write_text(bad)
        with pytest.raises(ValueError, match=rf"index\.json: .*{told}"):
            convert.read_torch(index)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such file"):
        convert.read_torch(index)


def test_opening_reads_no_tensor(tmp_path):
    path = tmp_path / "weights.safetensors"
    convert.write_safetensors(path, TENSORS)
    opened = torch_files.open_tensors(path)
    assert {key: (t.shape, t.dtype) for key, t in opened.items()} == {
        key: (value.shape, value.dtype) for key, value in TENSORS.items()
    }
    path.unlink()
    with pytest.raises(FileNotFoundError):
        opened["matrix"].read()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"PK\x03\x04" * 30,
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data + b"more",
        lambda data: data.replace(b'"shape":[2,3]', b'"shape":[9,9]'),
        lambda data: (10**6).to_bytes(8, "little") + b"[" * 10**6,
    ],
)
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    convert.write_safetensors(path, TENSORS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"weights\.safetensors: damaged"):
        convert.read_torch(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_leave_beside_the_tensors_is_passed_over(zipped, tmp_path):
    """numpy's numbers stand in the schedules of published Stable Diffusion checkpoints."""
    torch = pytest.importorskip("torch")
    left = {
        "lr_schedulers": [{"_last_lr": [np.float64(1e-4)], "curve": np.ones(3)}],
        "hyper_parameters": argparse.Namespace(rate=1e-4, folder=pathlib.PurePosixPath("data")),
        "optimizer": torch.optim.AdamW,
    }
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2)}, **left}, path, _use_new_zipfile_serialization=zipped)
    assert list(convert.read_torch(path)["a"]) == [1, 1]


class Call:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda torch: {"a": Call(os.system, "true")}, r"\(GLOBAL posix\.system whose module posix is blocked\)"),
        (lambda torch: {"a": Call(bytearray, 10**15)}, r"damaged"),
        (lambda torch: {"a": torch.ones(3, device="meta")}, r"a is no plain tensor"),
    ],
)
def test_crafted_pickles_are_named(content, told, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(content(torch), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=rf"weights\.pt: .*{told}"):
        convert.read_torch(tmp_path / "weights.pt")


def test_bytes_changed_at_random_lead_to_no_other_error(tmp_path, recwarn):
    torch = pytest.importorskip("torch")
    path, rng = tmp_path / "weights.ckpt", np.random.default_rng(0)
    torch.save({"state_dict": {"a": torch.ones(3)}}, path, _use_new_zipfile_serialization=False)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(150):
        data = whole.copy()
        data[rng.integers(data.size, size=3)] = rng.integers(256, size=3)
        path.write_bytes(data.tobytes())
        with contextlib.suppress(ValueError):
            convert.read_torch(path)
    path.write_bytes(pickle.dumps({"a": 1}, 4))
    with pytest.raises(ValueError, match=r"weights\.ckpt: damaged"):
        convert.read_torch(path)
    assert not [str(warning.message) for warning in recwarn]


def test_a_stranger_does_not_hide_that_all_others_are_wrapped(tmp_path):
    tensors = {f"module.{index}": np.ones(1, np.float32) for index in range(20)}
    convert.write_safetensors(tmp_path / "x.safetensors", tensors | {"loss.scale": np.ones(1, np.float32)})
    assert convert.read_torch(tmp_path / "x.safetensors").keys() == {*map(str, range(20)), "loss.scale"}


@pytest.mark.parametrize(
    "place", ["model", "ema", "net_g", "model_state_dict", "state", "params_ema", "state.network", "state_dict"]
)
def test_the_only_set_of_tensors_is_found_wherever_it_is(tmp_path, place):
    torch = pytest.importorskip("torch")
    content = {"weight": torch.ones(2)}
    for name in reversed(place.split(".")):
        content = {name: content}
    torch.save({"epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, **content}, tmp_path / "a.PTH")
    assert convert.read_torch(tmp_path / "a.PTH").keys() == {"weight"}
    (tmp_path / "a.PTH").rename(tmp_path / "a.pth.tar")
    assert convert.read_torch(tmp_path / "a.pth.tar").keys() == {"weight"}


def test_of_several_sets_of_tensors_one_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"net_g": {"weight": torch.ones(2)}, "net_d": {"judge": torch.ones(3), "bias": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match=r"net_g \(1 tensors\), net_d \(2 tensors\); choose one with --key=NAME"):
        torch_files.open_tensors(path)
    assert torch_files.open_tensors(path, key="net_d").keys() == {"judge", "bias"}
    with pytest.raises(ValueError, match=r"--key=ema: there are tensors at net_g, net_d"):
        torch_files.open_tensors(path, key="ema")
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, path)
    with pytest.raises(ValueError, match=r"holds no tensors, but epoch, args"):
        torch_files.open_tensors(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "netG.", "generator.", "model.", "ema_model."])
def test_prefixes_are_taken_off_where_every_key_has_them(tmp_path, prefix):
    path = tmp_path / "a.safetensors"
    convert.write_safetensors(path, {f"{prefix}{key}": value for key, value in TENSORS.items()})
    assert convert.read_torch(path).keys() == TENSORS.keys()
    named = {f"model.diffusion_model.{key}": value for key, value in TENSORS.items()}
    convert.write_safetensors(path, named)
    assert convert.read_torch(path).keys() == named.keys()


def test_what_downloads_leave_behind_is_recognised(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
        with pytest.raises(ValueError, match=r"a Git LFS pointer, not the file itself: run `git lfs pull`"):
            torch_files.open_tensors(tmp_path / name)
        (tmp_path / name).write_text("<!DOCTYPE html><title>404</title>")
        with pytest.raises(ValueError, match="web page"):
            torch_files.open_tensors(tmp_path / name)
        (tmp_path / name).write_text('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
        with pytest.raises(ValueError, match=r"a server's error message"):
            torch_files.open_tensors(tmp_path / name)
        (tmp_path / name).write_bytes(gzip.compress(b"tensors"))
        with pytest.raises(ValueError, match=r"compressed by gzip"):
            torch_files.open_tensors(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("weights.pth", b"")
    with pytest.raises(ValueError, match=r"a zip of other files \(weights\.pth\)"):
        torch_files.open_tensors(tmp_path / "a.pth")


def test_one_flipped_bit_is_found_by_the_checksum(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.ckpt"
    torch.save({"weight": torch.zeros(4096)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(4096)) + 2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged: .*data/0 in it does not have its checksum"):
        torch_files.open_tensors(path)
