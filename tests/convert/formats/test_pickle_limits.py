"""Pickles that could not be built in time are refused before any object is built."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from mperceiver_jax.convert.formats.pickle_limits import PickleLimitExceeded, check_limits
from mperceiver_jax.convert.formats.torch_files import open_tensors

torch = pytest.importorskip("torch")


def _doubled(times: int) -> tuple:
    """A tuple that holds the tuple before twice, and so on: 2**times elements in as many operations."""
    value: tuple = ()
    for _ in range(times):
        value = (value, value)
    return value


def _nested(depth: int) -> bytes:
    """The pickle of a tuple in a tuple, `depth` times; pickle itself could not write it."""
    return b"\x80\x02)" + b"\x85" * depth + b"."


def _dictionary_of(key: bytes) -> bytes:
    """The pickle of {key: 1}, from that of the key."""
    return b"\x80\x02}" + key.removeprefix(b"\x80\x02")[:-1] + b"K\x01s."


def _key(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def _checkpoint(path, content: bytes):
    """A checkpoint in PyTorch's zipped format whose pickle is `content`."""
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_checkpoints_pass(protocol):
    shared = (1, 2, 3)
    content = {
        "state": {f"layer.{i}.weight": (shared, [shared] * 5, {"step": i}) for i in range(2000)},
        "big": tuple(range(100_000)),
    }
    check_limits(io.BytesIO(pickle.dumps(content, protocol=protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_tuples_that_hold_each_other_twice_are_refused(protocol):
    check_limits(io.BytesIO(pickle.dumps(_doubled(10), protocol=protocol)))
    with pytest.raises(PickleLimitExceeded, match="no checkpoint has such"):
        check_limits(io.BytesIO(pickle.dumps(_doubled(60), protocol=protocol)))


def test_deep_tuples_are_refused():
    check_limits(io.BytesIO(_nested(90)))
    with pytest.raises(PickleLimitExceeded, match="nested 101 deep"):
        check_limits(io.BytesIO(_nested(200_000)))


@pytest.mark.parametrize("key", [_key(_doubled(60)), _nested(200_000)], ids=["doubled", "deep"])
def test_a_checkpoint_with_such_a_key_is_refused_at_once(tmp_path, key):
    path = _checkpoint(tmp_path / "crafted.pt", _dictionary_of(key))
    with pytest.raises(ValueError, match=r"crafted\.pt: damaged, or made to do harm: tuples nested"):
        open_tensors(path)
    # The format before 2020 is a sequence of pickles.
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    start = io.BytesIO(whole)
    for _ in range(3):
        pickle.Unpickler(start).load()
    path.write_bytes(whole[: start.tell()] + _dictionary_of(key))
    with pytest.raises(ValueError, match=r"crafted\.pt: damaged, or made to do harm: tuples nested"):
        open_tensors(path)


def test_bytes_before_it_that_are_no_pickle_do_not_hide_a_crafted_one(tmp_path):
    path = _checkpoint(tmp_path / "hidden.pt", _dictionary_of(_nested(200_000)))
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"hidden/first.pkl": b"\xff\xff", **entries}.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"hidden\.pt: damaged"):
        open_tensors(path)


def test_ordinary_keys_of_a_crafted_file_are_read(tmp_path):
    path = tmp_path / "plain.pt"
    torch.save({"w": torch.ones(2), "optimizer": {"betas": (0.9, 0.99)}}, path)
    np.testing.assert_array_equal(open_tensors(path)["w"].read(), np.ones(2))
