"""A few percent of a task's pairs, and tasks beyond those known."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from data_pipelines.config import PipelineConfig
from data_pipelines.heldout import heldout_examples
from data_pipelines.pipeline import train_batches
from data_pipelines.sources.few_shot import CUTS, few_pairs
from data_pipelines.sources.folders import ImageFolder, PairedFolders
from data_pipelines.tasks import TASKS, with_new_tasks

NEW = len(TASKS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"photo{k}_0.png")
    return folder


@pytest.fixture
def config(photos):
    return PipelineConfig(
        batch_size=6,
        crop=8,
        image_size=16,
        clip_size=4,
        flips="none",
        weights={"denoise": 1.0, "jpeg": 1.0},
        degradations={"jpeg": "mioir_out_jpeg"},
        new_tasks=("jpeg",),
        train_percent={"jpeg": 10.0},
        threads=0,
        images=str(photos),
        heldout_images=str(photos),
    )


def jpeg(config):
    return with_new_tasks(TASKS, config.new_tasks, config.degradations)[NEW]


def test_the_choice_is_one_for_every_seed_and_grows_with_the_percentage(config, photos):
    source = ImageFolder(photos)
    chosen, rest = few_pairs(source, config, jpeg(config))
    assert (len(chosen), len(rest)) == (4, 5 * CUTS - 4)
    assert not set(chosen.numbers) & set(rest.numbers)
    again, _ = few_pairs(source, dataclasses.replace(config, seed=9), jpeg(config))
    for k in range(4):
        assert np.array_equal(chosen[k]["lq"], again[k]["lq"]) and np.array_equal(chosen[k]["gt"], again[k]["gt"])
        assert chosen[k]["lq"].shape == (16, 16, 3) and np.any(chosen[k]["lq"] != chosen[k]["gt"])
    more, _ = few_pairs(source, dataclasses.replace(config, train_percent={"jpeg": 20.0}), jpeg(config))
    assert set(chosen.numbers) < set(more.numbers)


def test_a_batch_has_the_new_task_from_its_pairs_alone(config, photos):
    chosen, _ = few_pairs(ImageFolder(photos), config, jpeg(config))
    pairs = [chosen[k]["gt"] for k in range(len(chosen))]
    with train_batches(config) as batches:
        batch = next(batches)
    assert sorted(batch["task"].tolist()) == [2] * 3 + [NEW] * 3

    def cut_from(crop, image):
        windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 3))
        return any(np.array_equal(crop, window) for window in windows.reshape(-1, 8, 8, 3))

    for gt in np.rint(batch["gt"] * 255)[batch["task"] == NEW]:
        assert any(cut_from(gt, pair) for pair in pairs)


def test_held_out_examples_of_paired_tasks_are_the_other_pairs(config, photos, tmp_path):
    for name in photos.iterdir():
        pixels = np.asarray(Image.open(name))[:16, :16]
        Image.fromarray(255 - pixels).save(tmp_path / name.name)
    clean = tmp_path / "clean"
    clean.mkdir()
    for name in photos.iterdir():
        Image.fromarray(np.asarray(Image.open(name))[:16, :16]).save(clean / name.name)
    pairs = {"lq": str(tmp_path), "gt": str(clean)}
    paired = dataclasses.replace(config, degradations={}, pairs={"jpeg": pairs}, train_percent={"jpeg": 40.0})
    examples = heldout_examples(paired, 3)
    assert [row["task"] for row in examples] == [2] * 3 + [NEW] * 3
    for row in examples[3:]:
        np.testing.assert_allclose(row["lq"], 1 - row["gt"], atol=1e-6)
    chosen, rest = few_pairs(PairedFolders(**pairs), paired, jpeg(paired))
    assert [row["name"] for row in examples[3:]] == [rest[k]["name"] for k in range(3)]
    assert len(chosen) == 2
    with pytest.raises(
        ValueError, match=r"train_percent\['jpeg'\] leaves 3 pairs that do not train; per_task asks for 4"
    ):
        heldout_examples(paired, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degradations": {}}, "new_tasks: 'jpeg' needs an entry in degradations or in pairs"),
        ({"train_percent": {"jpeg": 0.0}}, r"train_percent\['jpeg'\] must be above 0 and at most 100, not 0.0"),
    ],
)
def test_what_cannot_be_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_unknown_percents_are_named(config):
    with pytest.raises(ValueError, match=r"train_percent\.fog: no task is named so"):
        train_batches(dataclasses.replace(config, train_percent={"fog": 5.0}))
