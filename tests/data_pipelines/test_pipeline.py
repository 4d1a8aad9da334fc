"""The training stream and the held-out examples, with cheap degradations in place of the real ones."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.config import PipelineConfig
from data_pipelines.heldout import heldout_examples
from data_pipelines.pipeline import train_batches
from data_pipelines.tasks import TASKS, Task
from data_pipelines.throughput import main as throughput_main
from data_pipelines.transforms import native_views


def darken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image * np.float32(0.5)


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 0.1, image.shape).astype(np.float32), 0, 1)


def keep(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


DOUBLES = (Task("dark", 0, "", darken), Task("noise", 1, "", add_noise), Task("same", 2, "", keep))
WEIGHTS = {"dark": 2.0, "noise": 1.0, "same": 1.0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten images of one grey level each, so that a crop tells which image it is from."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(10):
        level = np.full((20 + k, 24, 3), 20 * (k + 1), np.uint8)
        Image.fromarray(level).save(folder / f"photo{k}_0.png")
    return folder


@pytest.fixture
def config(photos):
    return PipelineConfig(
        batch_size=8,
        crop=8,
        image_size=12,
        image_scales=(1.0, 1.5),
        clip_size=6,
        weights=WEIGHTS,
        threads=0,
        prefetch=0,
        images=str(photos),
        heldout_images=str(photos),
    )


def take(config, count, tasks=DOUBLES, state=None, **hosts):
    with train_batches(config, tasks=tasks, **hosts) as stream:
        if state:
            stream.set_state(state)
        return [next(stream) for _ in range(count)]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def records(batch) -> list[tuple[int, int]]:
    """(task, image) of each example, read from the grey level of its clean crop."""
    levels = np.rint(batch["gt"][:, 0, 0, 0] * 255 / 20).astype(int) - 1
    return list(zip(batch["task"].tolist(), levels.tolist(), strict=True))


def test_what_a_batch_is(config):
    (batch,) = take(config, 1)
    shapes = {"lq": (8, 8, 8, 3), "gt": (8, 8, 8, 3), "lq_clip": (8, 6, 6, 3), "task": (8,)}
    assert {k: v.shape for k, v in batch.items()} == shapes
    assert all(batch[k].dtype == np.float32 and batch[k].flags.c_contiguous for k in ("lq", "gt", "lq_clip"))
    assert batch["task"].dtype == np.int32
    dark = batch["task"] == 0
    np.testing.assert_array_equal(batch["lq"][dark], batch["gt"][dark] * np.float32(0.5))
    assert 0.05 < np.std((batch["lq"] - batch["gt"])[batch["task"] == 1]) < 0.15


@pytest.mark.parametrize("threads", [0, 2])
def test_the_stream_is_the_same_for_any_number_of_hosts_and_threads(config, threads):
    alone = take(config, 4)
    threaded = dataclasses.replace(config, threads=threads, prefetch=2 * threads)
    for hosts in (1, 2, 4):
        parts = [take(threaded, 4, process_index=h, process_count=hosts) for h in range(hosts)]
        joined = [{k: np.concatenate([p[n][k] for p in parts]) for k in alone[0]} for n in range(4)]
        assert_equal(joined, alone)
        assert all(np.bincount(b["task"]).tolist() == [4, 2, 2] for b in joined)


def test_in_an_epoch_every_image_of_every_task_goes_to_one_host(config):
    parts = [take(config, 10, process_index=h, process_count=2) for h in range(2)]
    for task, batches in ((1, 5), (2, 5), (0, 5)):  # dark: two epochs of ten; noise and same: one
        seen = [[p for b in part[:batches] for t, p in records(b) if t == task] for part in parts]
        assert sorted(seen[0] + seen[1]) == sorted([*range(10)] * (2 if task == 0 else 1))
        assert seen[0] and seen[1]
        if task:
            assert not set(seen[0]) & set(seen[1])
    assert {t for b in parts[0] for t, _ in records(b)} == {0, 1, 2}


def test_more_hosts_than_images(config, tmp_path):
    Image.new("RGB", (30, 30), (99, 99, 99)).save(tmp_path / "only.png")
    single = dataclasses.replace(config, images=str(tmp_path))
    for host in range(8):
        assert take(single, 2, process_index=host, process_count=8)[1]["gt"].shape == (1, 8, 8, 3)


def test_epochs_seeds_and_tasks_are_shuffled_differently(config):
    batches = take(config, 10)
    order = [p for b in batches for t, p in records(b) if t == 1]
    assert sorted(order[:10]) == sorted(order[10:20]) and order[:10] != order[10:20]
    other = [p for b in take(dataclasses.replace(config, seed=1), 10) for t, p in records(b) if t == 1]
    assert order != other
    # Two tasks of one weight have the same numbers in a batch; their images must differ all the same.
    of_task = [[{p for t, p in records(b) if t == task} for b in batches] for task in (1, 2)]
    assert of_task[0] != of_task[1]


@pytest.mark.parametrize("threads", [0, 2])
def test_state_goes_on_bit_for_bit(config, threads):
    config = dataclasses.replace(config, threads=threads, prefetch=2 * threads)
    whole = take(config, 7)
    with train_batches(config, tasks=DOUBLES) as stream:
        for _ in range(3):
            next(stream)
        state = json.loads(json.dumps(stream.get_state()))
        next(stream)  # what was handed out after the state was taken does not count
        stream.set_state(state)
        assert_equal([next(stream) for _ in range(4)], whole[3:])
    assert state == {"next_batch": 3}
    assert_equal(take(config, 4, state=state), whole[3:])
    halves = [take(config, 4, state=state, process_index=h, process_count=2) for h in range(2)]
    np.testing.assert_array_equal(np.concatenate([h[0]["lq"] for h in halves]), whole[3]["lq"])


def test_two_worker_processes_give_the_same_stream_and_state(config):
    whole = take(config, 6)
    workers = dataclasses.replace(config, workers=2, threads=1, prefetch=1)
    with train_batches(workers, tasks=DOUBLES) as stream:
        stream.set_state({"next_batch": 1})
        assert_equal([next(stream) for _ in range(5)], whole[1:])
        assert stream.get_state() == {"next_batch": 6}


def test_orbax_saves_and_restores_the_stream(config, tmp_path):
    import grain
    import orbax.checkpoint as ocp

    with (
        train_batches(config, tasks=DOUBLES) as stream,
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
    ):
        next(stream)
        save = grain.checkpoint.CheckpointSave(stream)
        checkpointer.save(tmp_path / "at", ocp.args.Composite(data=save))
        expected = next(stream)
        other = train_batches(config, tasks=DOUBLES)
        restore = grain.checkpoint.CheckpointRestore(other)
        checkpointer.restore(tmp_path / "at", ocp.args.Composite(data=restore))
        assert_equal([next(other)], [expected])


def test_pairs_are_cropped_alike_and_seen_whole_by_clip(config, tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("lq", "gt"):
        (tmp_path / folder).mkdir()
    for k in range(3):
        gt = rng.integers(0, 200, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(gt).save(tmp_path / "gt" / f"norain{k}.png")
        Image.fromarray(gt + np.uint8(51)).save(tmp_path / "lq" / f"rain{k}.png")
    pair = {"lq": str(tmp_path / "lq"), "gt": str(tmp_path / "gt"), "pairing": "^rain=>norain"}
    for flips in ("none", "horizontal", "dihedral"):
        paired = dataclasses.replace(config, pairs={"noise": pair}, weights={"noise": 1}, flips=flips)
        for batch in take(paired, 2):
            np.testing.assert_allclose(batch["lq"], batch["gt"] + 0.2, atol=1e-6)
    whole = take(dataclasses.replace(paired, flips="none"), 3)
    views = {view.tobytes() for batch in whole for view in batch["lq_clip"]}
    assert len(views) == 3  # one for each image, whatever was cropped
    crops = take(dataclasses.replace(paired, flips="none", clip_view="crop"), 3)
    assert len({view.tobytes() for batch in crops for view in batch["lq_clip"]}) > 3


def test_whole_photographs_and_photographs_smaller_than_the_crop(config, tmp_path):
    Image.fromarray(np.full((1, 1, 3), 100, np.uint8)).save(tmp_path / "dot.png")
    for size in (0, 12):
        tiny = dataclasses.replace(config, images=str(tmp_path), image_size=size)
        (batch,) = take(tiny, 1)
        np.testing.assert_allclose(batch["gt"], np.full((8, 8, 8, 3), 100 / 255, np.float32), rtol=1e-6)


def test_heldout_examples_never_change_and_share_photographs(config):
    examples = heldout_examples(config, per_task=4, seed=3, tasks=DOUBLES)
    again = heldout_examples(config, per_task=4, seed=3, tasks=DOUBLES)
    assert len(examples) == 12 and [e["task"] for e in examples] == [0] * 4 + [1] * 4 + [2] * 4
    assert [e["name"] for e in examples] == [f"photo{k}_0" for k in range(4)] * 3
    for a, b in zip(examples, again, strict=True):
        assert a["lq"].shape == a["gt"].shape == (12, 12, 3) and a["lq_clip"].shape == (6, 6, 3)
        np.testing.assert_array_equal(a["lq"], b["lq"])
    np.testing.assert_array_equal(examples[0]["gt"], examples[4]["gt"])
    # The training batch, the number of examples and the other tasks change nothing in an example.
    alone = dataclasses.replace(config, weights={"noise": 1}, batch_size=2)
    np.testing.assert_array_equal(heldout_examples(alone, 2, 3, DOUBLES)[1]["lq"], examples[5]["lq"])
    assert not np.array_equal(heldout_examples(config, 4, 4, DOUBLES)[5]["lq"], examples[5]["lq"])
    with pytest.raises(ValueError, match="1 to 10"):
        heldout_examples(config, 11, tasks=DOUBLES)


def test_bundled_heldout_photographs_come_one_by_one():
    config = PipelineConfig(crop=16, image_size=16, clip_size=8, weights={"denoise": 1})
    names = [e["name"].rsplit("_", 1)[0] for e in heldout_examples(config, per_task=8)]
    assert len(set(names)) == 8


def test_real_tasks_on_bundled_photographs():
    config = PipelineConfig(batch_size=9, crop=32, image_size=32, image_scales=(1, 8), clip_size=8)
    (batch,) = take(config, 1, tasks=TASKS)
    assert sorted(batch["task"].tolist()) == list(range(9))
    assert np.isfinite(batch["lq"]).all() and batch["lq"].min() >= 0 and batch["lq"].max() <= 1
    assert all(np.abs(lq - gt).mean() > 1e-4 for lq, gt in zip(batch["lq"], batch["gt"], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"crop": 13}, "image_size"),
        ({"seed": -1}, "seed"),
        ({"image_scales": (0.5, 1)}, "image_scales"),
        ({"clip_view": "half"}, "clip_view"),
        ({"flips": "vertical"}, "flips"),
        ({"clip_view": "native", "clip_views": 6}, "clip_views must be a square number, not 6"),
        ({"severities": "mild"}, "severities must be 'standard', 'wide' or 'mixed', not 'mild'"),
        ({"pairs": {"dark": {"lq": "x"}}}, "pairs"),
    ],
)
def test_wrong_fields_are_named(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_wrong_use(config, tmp_path):
    with pytest.raises(ValueError, match=r"weights\.fog: no task is named so"):
        train_batches(dataclasses.replace(config, weights={"fog": 1}), tasks=DOUBLES)
    pairs = {"same": {"lq": "a", "gt": "b"}}
    with pytest.raises(ValueError, match="leaves this task out"):
        train_batches(dataclasses.replace(config, weights={"dark": 1}, pairs=pairs), tasks=DOUBLES)
    with pytest.raises(FileNotFoundError, match="no data folder"):
        train_batches(dataclasses.replace(config, images=str(tmp_path / "none")), tasks=DOUBLES)
    with pytest.raises(ValueError, match="3 hosts"):
        train_batches(config, 0, 3, tasks=DOUBLES)


def test_broken_image_stops_the_stream_and_is_named(config, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"")
    for threads in (0, 2):
        broken = dataclasses.replace(config, images=str(tmp_path), threads=threads, prefetch=threads)
        with pytest.raises(ValueError, match=r"broken\.jpg"):
            take(broken, 1)


def test_throughput_prints_a_rate(photos, capsys):
    sizes = ["--batch_size=4", "--crop=8", "--image_size=8", "--clip_size=4", "--threads=1"]
    throughput_main([*sizes, "--batches=2", "--task=denoise", f"--images={photos}"])
    assert "images/s (2 batches of 4" in capsys.readouterr().out


def test_native_views_are_part_of_batches_and_of_heldout_examples(config):
    config = dataclasses.replace(config, clip_view="native", clip_views=4)
    (batch,) = take(config, 1)
    assert batch["lq_clip"].shape == (8, 4, 6, 6, 3) and batch["lq_clip"].dtype == np.float32
    row = heldout_examples(config, 1, tasks=DOUBLES)[0]
    np.testing.assert_array_equal(row["lq_clip"], native_views(row["lq"], 6, 4))


def test_flipped_training_images_reach_every_symmetry_of_the_square(tmp_path):
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "only_0.png")
    config = PipelineConfig(
        batch_size=40, crop=4, image_size=4, clip_size=0, flips="dihedral", threads=0, prefetch=0,
        weights={"same": 1.0}, images=str(tmp_path),
    )  # fmt: skip
    (batch,) = take(config, 1)
    turned = [np.rot90(image, turns) for image in (pixels, pixels[:, ::-1]) for turns in range(4)]
    assert {image.tobytes() for image in np.rint(batch["gt"] * 255).astype(np.uint8)} == {
        np.ascontiguousarray(image).tobytes() for image in turned
    }
