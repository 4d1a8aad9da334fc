"""The command: complete output or none, faults left out or refused, an interruption taken up again."""

import dataclasses
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_pipelines.datasets import pack, shards
from data_pipelines.datasets.layouts import layout_named
from data_pipelines.datasets.pack import free_space_problem
from data_pipelines.datasets.pairing import find
from data_pipelines.datasets.tree import Tree
from data_pipelines.prepare import main
from data_pipelines.sources.shards import PreparedImages
from tests.support.dataset_trees import write_image


@pytest.fixture
def tree(tmp_path) -> Path:
    """GoPro with eleven pairs: one unreadable, one of two sizes, one without a partner."""
    root = tmp_path / "GOPRO"
    for k in range(11):
        write_image(root / f"train/s1/blur/{k:06d}.png", k)
        write_image(root / f"train/s1/sharp/{k:06d}.png", 100 + k)
    broken = root / "train/s1/blur/000002.png"
    broken.write_bytes(broken.read_bytes()[:60])
    write_image(root / "train/s1/sharp/000005.png", 5, (9, 6))
    (root / "train/s1/sharp/000007.png").unlink()
    return root


def state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*")}


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_faults_are_told_and_left_out(tree, tmp_path, capsys):
    before = state(tree)
    output = tmp_path / "out"
    assert run("gopro", "--source", tree, "--output", output, "--subset", "--shard-megabytes=0.001") == 0
    printed = capsys.readouterr().out
    assert "missing: train/s1/blur/000007.png" in printed and "1 unreadable" in printed and "1 size" in printed
    assert "unreadable: train/s1/blur/000002.png: " in printed and "size: train/s1/sharp/000005.png: 9x6" in printed
    assert state(tree) == before
    manifest = json.loads((output / "manifest.json").read_text())
    left_out = {fault["name"]: fault["kind"] for fault in manifest["splits"]["train"]["left_out"]}
    assert left_out == {
        "train/s1/blur/000002.png": "unreadable",
        "train/s1/sharp/000005.png": "size",
        "train/s1/blur/000007.png": "missing",
    }
    assert manifest["tool"].startswith("data_pipelines.prepare ") and manifest["licence"] == "CC BY 4.0"
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert sorted(p.name for p in output.iterdir()) == sorted(
        ["manifest.json", *(shard["file"] for shard in manifest["splits"]["train"]["shards"])]
    )

    source = PreparedImages(output)
    assert len(source) == 8 == manifest["splits"]["train"]["records"]
    for k in range(len(source)):
        record = source.record(k)
        assert record.lq == (tree / f"{record.id}.png").read_bytes()
        assert record.gt == (tree / f"{record.id.replace('blur', 'sharp')}.png").read_bytes()
        assert (record.task, record.height, record.width) == ("deblur_motion", 6, 8)
        np.testing.assert_array_equal(source[k]["lq"], np.asarray(Image.open(tree / f"{record.id}.png")))


def test_strict_refuses_and_leaves_no_output(tree, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ("gopro", "--source", tree, "--output", output, "--subset", "--strict")
    assert run(*arguments) == 1 and not output.exists()
    assert "missing: train/s1/blur/000007.png" in capsys.readouterr().out
    (tree / "train/s1/blur/000007.png").unlink()
    assert run(*arguments) == 1 and not output.exists()
    refusal = capsys.readouterr().err
    assert "unreadable: train/s1/blur/000002.png" in refusal and "size: train/s1/sharp/000005.png: 9x6" in refusal
    write_image(tree / "train/s1/blur/000002.png", 2)
    write_image(tree / "train/s1/sharp/000005.png", 5)
    assert run(*arguments) == 0 and len(PreparedImages(output)) == 10


def test_check_tells_and_writes_nothing(tree, tmp_path, capsys):
    before = state(tmp_path)
    assert run("check", "gopro", "--source", tree, "--split=train") == 1
    printed = capsys.readouterr().out
    for name in (
        "count: train: 10 pairs, published 2103",
        "unreadable: train/s1/blur/000002.png",
        "size: ",
        "missing: ",
    ):
        assert name in printed
    assert state(tmp_path) == before


def test_interrupted_preparation_goes_on(tree, tmp_path, monkeypatch):
    output, straight = tmp_path / "out", tmp_path / "straight"
    arguments = ("gopro", "--source", tree, "--subset", "--shard-megabytes=0.001", "--workers=1")
    assert run(*arguments, "--output", straight) == 0
    written = []

    def interrupting(folder, file, records, source):
        if len(written) == 3:
            next(iter(records))
            (folder / f"{file}.partial").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(file)
        return shards.write_shard(folder, file, records, source)

    monkeypatch.setattr(pack, "write_shard", interrupting)
    assert run(*arguments, "--output", output) == 130
    assert not output.exists()
    kept = {p.name: p.stat().st_mtime_ns for p in Path(f"{output}.partial").glob("*.array_record")}
    assert len(kept) == 3
    again = []

    def counting(folder, file, records, source):
        again.append(file)
        return shards.write_shard(folder, file, records, source)

    # A image of a finished shard was replaced in the meantime: that shard is made anew.
    first = sorted((tree / "train/s1/blur").iterdir())[0]
    os.utime(first, ns=(1, 1))
    monkeypatch.setattr(pack, "write_shard", counting)
    assert run(*arguments, "--output", output) == 0
    assert set(again) & set(kept) == {min(kept)}
    assert not Path(f"{output}.partial").exists()
    assert (output / "manifest.json").read_text() == (straight / "manifest.json").read_text()
    assert all((output / n).stat().st_mtime_ns == t for n, t in kept.items() if n != min(kept))
    assert shards.check_shards(output) == 8


def test_output_must_be_new_and_outside(tree, tmp_path, capsys):
    assert run("gopro", "--source", tree, "--output", tree / "out", "--subset") == 2
    assert "lies within the source" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert run("gopro", "--source", tree, "--output", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("lol", "--source", tree, "--output", tmp_path / "new") == 2
    assert "holds no lol_v1" in capsys.readouterr().err
    assert run("gopro", "--source", tree, "--output", tmp_path / "new", "--split=val") == 2
    assert "has the splits train, test, not val" in capsys.readouterr().err


def test_own_pairs_and_clean_images(tmp_path, capsys):
    for n in (1, 2):
        write_image(tmp_path / f"mine/foggy/{n}_thick.png", n)
        write_image(tmp_path / f"mine/clear/{n}.png", n)
    common = ("--source", tmp_path / "mine", "--lq=foggy", "--gt=clear")
    assert run("pairs", *common, "--output", tmp_path / "a") == 2  # which task?
    assert "--task" in capsys.readouterr().err
    assert run("pairs", *common, "--task=dehaze", "--pairing=prefix", "--output", tmp_path / "a") == 0
    assert run("pairs", *common, "--task=dehaze", "--pairing={n}_thick=>{n}", "--output", tmp_path / "b") == 0
    assert (tmp_path / "a/manifest.json").read_text() == (tmp_path / "b/manifest.json").read_text()
    assert PreparedImages(tmp_path / "a").task == "dehaze"
    assert run("clean", "--source", tmp_path / "mine/clear", "--output", tmp_path / "c") == 0
    assert PreparedImages(tmp_path / "c")[0]["image"].shape == (6, 8, 3)


def test_blocks_of_a_matlab_file_become_lossless_images(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 5, 3), np.uint8)
    source = tmp_path / "SIDD"
    source.mkdir()
    for name, values in (("ValidationNoisyBlocksSrgb", blocks), ("ValidationGtBlocksSrgb", 255 - blocks)):
        scipy.io.savemat(source / f"{name}.mat", {name: values})
    assert run("sidd", "--source", source, "--split=val", "--output", tmp_path / "out") == 0
    prepared = PreparedImages(tmp_path / "out")
    np.testing.assert_array_equal([prepared[k]["lq"] for k in range(4)], blocks.reshape(-1, 4, 5, 3))
    np.testing.assert_array_equal([prepared[k]["gt"] for k in range(4)], 255 - blocks.reshape(-1, 4, 5, 3))


def test_blocks_count_as_themselves_not_as_their_file(tmp_path, monkeypatch):
    blocks = np.zeros((50, 60, 1, 1, 3), np.uint8)
    scipy.io.savemat(tmp_path / "BenchmarkNoisyBlocksSrgb.mat", {"x": blocks})
    split = next(split for split in layout_named("sidd").splits if split.name == "benchmark")
    found = [find(Tree(tmp_path), split)]
    with open(tmp_path / "BenchmarkNoisyBlocksSrgb.mat", "r+b") as file:
        file.truncate(10**8)  # as large as the published ones; 3000 times that is on no disk
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**9))
    assert free_space_problem(found, tmp_path / "out") is None


def test_a_damaged_matlab_file_is_read_once(tmp_path, monkeypatch, capsys):
    path = tmp_path / "BenchmarkNoisyBlocksSrgb.mat"
    scipy.io.savemat(path, {"x": np.zeros((2, 3, 16, 16, 3), np.uint8)})
    with open(path, "r+b") as file:
        file.truncate(1000)
    load, calls = scipy.io.loadmat, []
    monkeypatch.setattr(scipy.io, "loadmat", lambda *a, **k: calls.append(a) or load(*a, **k))
    assert run("check", "sidd", "--source", tmp_path, "--split=benchmark") == 1
    assert "6 unreadable" in capsys.readouterr().out and len(calls) == 1


def test_dead_links_are_unreadable_images(tree, tmp_path, capsys):
    for name, target in (("000003", "nowhere.png"), ("000004", "000004.png")):
        path = tree / f"train/s1/blur/{name}.png"
        path.unlink()
        path.symlink_to(target)
    assert run("gopro", "--source", tree, "--output", tmp_path / "out", "--subset") == 0
    printed = capsys.readouterr().out
    assert "unreadable: train/s1/blur/000003.png: " in printed and "unreadable: train/s1/blur/000004.png: " in printed
    assert len(PreparedImages(tmp_path / "out")) == 6


def test_names_in_other_encodings(tmp_path, capsys):
    for side, form in (("lq", "NFC"), ("gt", "NFD")):
        write_image(tmp_path / "mine" / side / f"{unicodedata.normalize(form, 'ü')}.png")
        os.rename(write_image(tmp_path / "mine" / side / "x.png"), os.fsencode(tmp_path / "mine" / side) + b"/\xff.png")
    arguments = ("pairs", "--source", tmp_path / "mine", "--task=derain")
    assert run(*arguments, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "misnamed: lq/\\udcff.png: its name is not UTF-8" in printed and "1 records" in printed
    assert PreparedImages(tmp_path / "out")[0]["name"] == "lq/ü"
    assert run(*arguments, "--output", tmp_path / "strict", "--strict") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pairs", "--pairing={a}=>{b}"), "{b} is a field of the clean pattern only"),
        (("pairs", "--pairing={a:(}=>{a}"), "--pairing={a:(}=>{a}: missing )"),
        (("pairs", "--split=train"), "none of the images can be used"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(arguments, said, tmp_path, capsys):
    write_image(tmp_path / "gt/1.png")
    (tmp_path / "lq").mkdir()
    (tmp_path / "lq/1.png").write_bytes(b"")
    output = tmp_path.parent / f"{tmp_path.name}_out"
    assert run(*arguments, "--source", tmp_path, "--task=derain", "--output", output) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.parent.glob(f"{output.name}*"))


@pytest.mark.parametrize("text", ["[]", '{"format": "prepared images 1"}'])
def test_manifests_that_are_none(text, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text(text)
    assert run("verify", tmp_path) == 2 and "not a manifest" in capsys.readouterr().err


def test_listing(capsys):
    assert run("list") == 0
    table = capsys.readouterr().out
    assert "reside_ots" in table and "train 72135 " in table and "test_l 16801?" in table
    assert run("list", "Rain100L") == 0
    assert "rainy/rain-{n} -> gt/norain-{n}" in capsys.readouterr().out
    assert run("list", "imagenet") == 2


def test_damaged_output_is_found(tree, tmp_path, capsys):
    output = tmp_path / "out"
    assert run("gopro", "--source", tree, "--output", output, "--subset") == 0
    assert run("verify", output) == 0
    (shard,) = output.glob("*.array_record")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert run("verify", output) == 2
    assert "not what was written" in capsys.readouterr().err
    shard.write_bytes(content[:-7])
    with pytest.raises(FileNotFoundError, match="cut short"):
        PreparedImages(output)


def test_a_damaged_shard_or_image_is_named_in_training(tree, tmp_path):
    output = tmp_path / "out"
    assert run("gopro", "--source", tree, "--output", output, "--subset") == 0
    (shard,) = output.glob("*.array_record")
    whole = shard.read_bytes()
    content = bytearray(whole)
    content[content.rindex(b"IDAT") + 8] ^= 1
    shard.write_bytes(content)
    prepared = PreparedImages(output)
    with pytest.raises(ValueError, match=rf"{re.escape(str(shard))}: damaged .*; prepare or copy the data again"):
        [prepared[index] for index in range(len(prepared))]
    shard.write_bytes(whole)
    prepared = PreparedImages(output)
    damaged = dataclasses.replace(prepared.record(0), gt=b"no image")
    prepared.record = lambda index: damaged
    with pytest.raises(ValueError, match=rf"cannot read the image {damaged.id} in {re.escape(str(output))}, gt: "):
        prepared[0]
