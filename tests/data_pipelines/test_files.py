"""Files that appear complete or not at all."""

import os

import pytest

from data_pipelines.files import atomic_outputs, write_atomically


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text is not bytes")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_all_appear_or_none(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(KeyError), atomic_outputs(first, second) as partials:
        partials[0].write_text("1")
        raise KeyError
    with pytest.raises(FileExistsError), atomic_outputs(first, second) as partials:
        [path.write_text("ours") for path in partials]
        first.write_text("theirs")
    assert contents(tmp_path) == {"first": b"theirs"}


def test_without_hard_links_files_are_renamed(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with atomic_outputs(tmp_path / "sub" / "file") as (partial,):
        partial.write_text("1")
    assert contents(tmp_path) == {"sub/file": b"1"}
