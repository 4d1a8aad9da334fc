"""Sources by name: prepared data near and far, TFDS, folders, sums and repeats; and training from them."""

import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from data_pipelines.config import PipelineConfig
from data_pipelines.datasets.mixture_plan import main as plan_main
from data_pipelines.datasets.mixture_plan import parts_of, plan
from data_pipelines.pipeline import train_batches
from data_pipelines.prepare import main as prepare
from data_pipelines.sources.folders import ImageFolder
from data_pipelines.sources.shards import PreparedImages
from data_pipelines.sources.spec import ConcatSources, open_source, parse_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """mine/lq and mine/gt, and what was prepared of them: pairs/ and clean/; image k is of grey level 20 k."""
    root = tmp_path_factory.mktemp("data")
    for k in range(1, 7):
        for side, level in (("lq", 20 * k), ("gt", 20 * k + 5)):
            path = root / "mine" / side / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 16, 3), level, np.uint8)).save(path)
    source = f"--source={root / 'mine'}"
    prepare(["pairs", source, "--task=derain", f"--output={root / 'pairs'}", "--shard-megabytes=0.0003"])
    prepare(["clean", f"{source}/gt", f"--output={root / 'clean'}"])
    return root


def levels(source) -> list[int]:
    key = "image" if "image" in source[0] else "gt"
    return [int(source[k][key][0, 0, 0]) for k in range(len(source))]


def test_names_find_sources(folder):
    pairs = open_source(f"{folder}/pairs")
    assert isinstance(pairs, PreparedImages) and len(pairs.manifest["splits"]["train"]["shards"]) > 1
    assert levels(pairs) == levels(open_source(f"{folder}/pairs:train")) == [25, 45, 65, 85, 105, 125]
    assert pairs[2]["name"] == "lq/3" and pairs[2]["lq"][0, 0, 0] == 60
    assert levels(pickle.loads(pickle.dumps(pairs))) == levels(pairs)
    assert isinstance(open_source(f"{folder}/mine/gt"), ImageFolder)
    with pytest.raises(ValueError, match=r"no split 'test'; name one of train"):
        open_source(f"{folder}/pairs:test")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_source(f"{folder}/nowhere")


def test_sums_and_repeats(folder):
    joined = open_source(f"{folder}/clean*3 + {folder}/mine/gt")
    assert isinstance(joined, ConcatSources)
    assert levels(joined) == [25, 45, 65, 85, 105, 125] * 4
    assert parse_source("/a*b + gs://c/d:train*12") == [("/a*b", 1), ("gs://c/d:train", 12)]
    for wrong in ("", "a*0", "a + ", " + a"):
        with pytest.raises(ValueError, match="is no source"):
            parse_source(wrong)


class Bucket(LocalFileSystem):
    """A network drive: gs://bucket/x is the local file ROOT/x. Files that are read are noted."""

    protocol = "gs"
    cacheable = False
    root = Path()
    opened: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return f"{cls.root}/{str(path).removeprefix('gs://bucket').lstrip('/')}" if "gs://" in str(path) else str(path)

    def _open(self, path, mode="rb", **kwargs):
        self.opened.append(Path(path).name)
        return super()._open(path, mode, **kwargs)


def test_shards_over_a_network_come_once(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "gcs", Bucket)
    monkeypatch.setattr(Bucket, "root", folder)
    monkeypatch.setattr(Bucket, "opened", [])
    taken = lambda: sum(name.endswith(".array_record") for name in Bucket.opened)
    shards = len(list((folder / "pairs").glob("*.array_record")))
    here = levels(open_source(f"{folder}/pairs"))
    assert levels(PreparedImages("gs://bucket/pairs", download_folder=tmp_path)) == here and taken() == shards
    PreparedImages("gs://bucket/pairs", download_folder=tmp_path)
    assert taken() == shards
    next(tmp_path.glob("*.array_record")).write_bytes(b"cut short")
    assert levels(PreparedImages("gs://bucket/pairs", download_folder=tmp_path)) == here and taken() == shards + 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert levels(open_source("gs://bucket/pairs:train*2")) == 2 * here
    with pytest.raises(FileNotFoundError, match=r"no prepared data at gs://bucket/other"):
        PreparedImages("gs://bucket/other")


def test_a_tfds_set_built_and_read_without_tensorflow(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    common = (f"--output={tmp_path}", "--format=tfds", "--tfds-name=toy")
    prepare(["pairs", f"--source={folder / 'mine'}", "--task=derain", *common])
    assert "train: 6 records" in capsys.readouterr().out
    for output, said in ((tmp_path, "exists already"), (folder / "mine" / "tfds", "lies within the source")):
        with pytest.raises(SystemExit):
            prepare(["pairs", f"--source={folder / 'mine'}", "--task=derain", *common[1:], f"--output={output}"])
        assert said in capsys.readouterr().err
    source = open_source("tfds:restoration_pairs/toy:train")
    assert sorted(levels(source)) == [25, 45, 65, 85, 105, 125]
    element = pickle.loads(pickle.dumps(source))[0]
    expected = np.asarray(Image.open(folder / "mine" / f"{element['name']}.png"))
    np.testing.assert_array_equal(element["lq"], expected)
    by_path = open_source(f"tfds:{tmp_path}/restoration_pairs/toy/1.0.0:train[:50%](gt,lq)")
    assert len(by_path) == 3 and by_path[0]["lq"][0, 0, 0] == by_path[0]["gt"][0, 0, 0] + 5
    for name, said in (
        ("tfds:restoration_pairs/toy:val", "Unknown split"),
        ("tfds:restoration_pairs/toy:train(lq,clean)", "has the features .*; pairs are lq and clean"),
        ("tfds:restoration_pairs/toy", "is no TFDS source"),
    ):
        with pytest.raises(ValueError, match=said):
            open_source(name)
    with pytest.raises(FileNotFoundError, match="TFDS_DATA_DIR"):
        open_source("tfds:no_such_set:train")


@pytest.fixture
def config(folder):
    return {
        "crop": 8,
        "clip_size": 6,
        "flips": "none",
        "threads": 0,
        "weights": {"derain": 1.0, "denoise": 1.0},
        "pairs": {
            "derain": f"{folder}/pairs*3",
            "denoise": {"source": f"{folder}/clean*6"},
        },
    }


def counted(config: PipelineConfig, batches: int) -> dict[int, int]:
    with train_batches(config) as stream:
        tasks = np.concatenate([next(stream)["task"] for _ in range(batches)])
    return dict(zip(*(part.tolist() for part in np.unique(tasks, return_counts=True)), strict=True))


def test_training_from_prepared_data_and_its_mixtures(config):
    derain, denoise = 3, 2
    with train_batches(PipelineConfig(batch_size=4, **config)) as stream:
        batch = next(stream)
    rain = batch["task"] == derain
    assert rain.sum() == 2
    np.testing.assert_allclose(batch["gt"][rain] - batch["lq"][rain], 5 / 255, atol=1e-6)
    assert np.std(batch["lq"][~rain] - batch["gt"][~rain], axis=(1, 2, 3)).min() > 0.01  # degraded as the task does
    proportional = PipelineConfig(batch_size=6, mixing="proportional", **config)
    assert counted(proportional, 3) == {derain: 6, denoise: 12}  # 18 against 36 examples
    root = PipelineConfig(batch_size=6, mixing="temperature", temperature=2.0, **config)
    assert counted(root, 100)[denoise] == pytest.approx(600 * 2**0.5 / (1 + 2**0.5), abs=3)
    assert counted(PipelineConfig(batch_size=2, mixing="one_per_task", **config), 5) == {derain: 5, denoise: 5}
    with pytest.raises(ValueError, match="batch_size 3 is no multiple of the 2 tasks"):
        train_batches(PipelineConfig(batch_size=3, mixing="one_per_task", **config))
    with pytest.raises(ValueError, match="mixing must be one of"):
        PipelineConfig(mixing="random")
    with pytest.raises(ValueError, match="takes 'source'"):
        PipelineConfig(pairs={"derain": {"source": "a", "lq": "b"}})


def test_without_a_view_for_clip(config):
    with train_batches(PipelineConfig(batch_size=2, **(config | {"clip_size": 0}))) as stream:
        batch = next(stream)
    with train_batches(PipelineConfig(batch_size=2, **config)) as stream:
        full = next(stream)
    assert set(full) - set(batch) == {"lq_clip"}
    for name in batch:
        np.testing.assert_array_equal(batch[name], full[name])


def test_a_published_degradation_takes_the_place_of_a_tasks_own(config):
    one = config | {"weights": {"denoise": 1.0}, "pairs": {"denoise": config["pairs"]["denoise"]}, "threads": 0}
    for name, mild in ((None, False), ("nearly_clean", True)):
        settings = {"degradations": {"denoise": name}} if name else {}
        with train_batches(PipelineConfig(batch_size=4, **one, **settings)) as stream:
            batch = next(stream)
        assert (np.abs(batch["lq"] - batch["gt"]).mean() < 0.02) == mild
    with pytest.raises(ValueError, match=r"degradations\['denoise'\]: no degradation is named 'fog'"):
        PipelineConfig(degradations={"denoise": "fog"})
    with pytest.raises(ValueError, match=r"degradations\.\w+: no task is named so"):
        train_batches(PipelineConfig(degradations={"deflicker": "promptir_noise"}))


def test_a_plan_says_how_often_a_image_is_seen(folder, capsys):
    plan_main(["promptir"])
    printed = capsys.readouterr().out
    assert "142431 examples, 4451 batches of 32 (proportional)" in printed
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    assert rows["derain"][1:3] == ["200", "x120"] and rows["derain"][-1] == "120"
    assert rows["denoise"][-2:] == ["32.5%", "9"] and rows["dehaze"][-2] == "50.6%"
    table = plan(parts_of({"derain": f"{folder}/pairs*3 + 12", "denoise": "30"}), 4, "one_per_task")
    assert [line.split()[-1] for line in table.splitlines()[1:4]] == ["3", "1", "1"]
    with pytest.raises(SystemExit):
        plan_main(["promptyr"])
    assert "is no recipe" in capsys.readouterr().err
