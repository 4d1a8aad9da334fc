"""Tiles: weights that sum to one, no seams, and the whole image's result where the receptive field allows."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from data_pipelines.tasks import TASK_SETS, TASKS, with_new_tasks
from mperceiver_jax.diffusion.dpm_solver import DPMSolver
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.models.restorers.mioir.swinir import SwinIRConfig
from mperceiver_jax.models.restorers.registry import RegressionConfig, RegressionModel
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.backends import AUTOMATIC_TILE
from mperceiver_jax.restore.batched import BatchedRestorer
from mperceiver_jax.restore.settings import RestoreSettings
from mperceiver_jax.restore.tiling import aligned_starts, fitting_tile, restore_in_tiles, tile_starts, tile_weights

SEVEN = tuple(task.name for task in TASK_SETS["mioir"])


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(100, 40, 10), (41, 40, 20), (40, 40, 8), (7, 40, 8), (33, 21, 10)]
)
def test_tiles_cover_a_side_and_weights_sum_to_one(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    weights = tile_weights(length, tile, starts)
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert starts[0] == 0 and starts[-1] + weights.shape[1] == length
    assert all(after - before <= tile - overlap for before, after in itertools.pairwise(starts))


def test_weights_leave_out_borders_and_pass_over_smoothly():
    first, second = tile_weights(48, 32, [0, 16])
    assert np.all(first[28:] == 0) and np.all(second[:4] == 0) and np.all(first[:20] == 1)
    assert np.abs(np.diff(first)).max() < 0.25


def test_tiles_begin_where_windows_do():
    seen = []

    def restore(tile, top, left):
        seen.append(tile[0, 0, :2].tolist())
        return tile

    where = np.stack([*np.meshgrid(np.arange(61), np.arange(75), indexing="ij"), np.zeros((61, 75))], -1)
    image = where.astype(np.float32)
    np.testing.assert_allclose(restore_in_tiles(restore, image, 24, 12, align=8), image, rtol=1e-6)
    inner = [(top, left) for top, left in seen if top < 61 - 24 and left < 75 - 24]
    assert inner and all(top % 8 == left % 8 == 0 for top, left in inner)
    # They share at least what was asked for, also where that is no multiple of the windows.
    for starts in map(sorted, ({top for top, _ in seen}, {left for _, left in seen})):
        assert all(after - before <= 24 - 12 for before, after in itertools.pairwise(starts))


def test_a_step_between_tiles_becomes_a_slope():
    """Tiles that disagree, as those of networks that look at everything do, leave no seam."""
    level = iter(np.linspace(0, 1, 3))
    out = restore_in_tiles(lambda tile, *_: np.full_like(tile, next(level)), np.zeros((32, 80, 3), np.float32), 32, 8)
    assert np.abs(np.diff(out[0, :, 0])).max() < 0.2 < np.ptp(out)


@pytest.mark.parametrize(("tile", "overlap"), [(32, 17), (32, -1), (0, 0), (30, 8), (8, 2)])
def test_sizes_that_do_not_go_together_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="overlap"):
        restore_in_tiles(lambda tile, *_: tile, np.zeros((64, 64, 3), np.float32), tile, overlap, align=8)


@pytest.fixture(scope="module")
def network():
    model = RegressionModel(RegressionConfig("mioir_srresnet", SRResNetConfig(4, 1), SEVEN))
    # Initial values change an image too little to tell.
    return model, {path: 4 * value for path, value in parameters.initial_values(model, 0).items()}


def test_tiles_give_what_the_whole_image_gives(network):
    """Two convolutions in a block, and three around: the receptive field reaches 5 pixels."""
    image = np.random.default_rng(0).random((61, 90, 3), np.float32)
    whole = Restorer(*network, RestoreSettings(min_size=1), tasks=())(image)
    in_tiles = Restorer(*network, RestoreSettings(min_size=1, tile=48, overlap=20), tasks=())(image)
    assert np.ptp(whole - image) > 0.01
    np.testing.assert_allclose(in_tiles, whole, atol=1e-6)
    # With less overlap than that the tiles' borders show.
    narrow = Restorer(*network, RestoreSettings(min_size=1, tile=48, overlap=4), tasks=())(image)
    assert np.abs(narrow - whole).max() > 1e-5


def test_every_tile_is_restored_under_the_condition_of_the_whole_image():
    model = RegressionModel(RegressionConfig("mioir_srresnet", SRResNetConfig(4, 1, prompts="explicit"), SEVEN))
    params = {path: 4 * value for path, value in parameters.initial_values(model, 0).items()}
    image = np.random.default_rng(0).random((61, 90, 3), np.float32)
    image[6:54, 21:69] = 0.9  # the tile in the middle, which is of another kind
    # Half of what is computed is padding, which the classifier must not see.
    restorer, in_tiles = (
        Restorer(model, params, RestoreSettings(min_size=128, **size), tasks=TASK_SETS["mioir"])
        for size in ({}, {"tile": 48, "overlap": 20})
    )
    parameters.assign(model, params)
    truly = dict(zip(SEVEN, jax.nn.softmax(model.classifier(image[None]))[0].tolist(), strict=True))
    assert restorer.predict(image) == pytest.approx(truly, abs=1e-5)
    likeliest = lambda found: max(found, key=found.get)
    assert likeliest(restorer.predict(image[6:54, 21:69])) != likeliest(truly)
    whole, parts = restorer.restore(image), in_tiles.restore(image)
    assert whole.probabilities == pytest.approx(truly, abs=1e-5) and parts.probabilities == whole.probabilities
    np.testing.assert_allclose(parts.image, whole.image, atol=1e-6)
    (batched,) = BatchedRestorer(restorer, sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]))([image])
    np.testing.assert_allclose(batched, whole.image, atol=1e-6)


def test_windows_lie_as_in_the_whole_image_in_the_last_tiles_too():
    """Two blocks of windows of 4 reach 14 pixels with the convolutions around them; sides are no multiples of 4."""
    sizes = SwinIRConfig(width=4, heads=1, depths=(2,), window=4, tail=4, drop_path=0.0)
    model = RegressionModel(RegressionConfig("mioir_swinir", sizes, SEVEN))
    # Away from uniform attention, which would hide where windows begin.
    params = {path: 3 * value for path, value in parameters.initial_values(model, 0).items()}
    image = np.random.default_rng(0).random((61, 121, 3), np.float32)
    whole = Restorer(model, params, RestoreSettings(min_size=1), tasks=())(image)
    in_tiles = Restorer(model, params, RestoreSettings(min_size=1, tile=112, overlap=56), tasks=())(image)
    np.testing.assert_allclose(in_tiles, whole, atol=1e-5)


def test_settings_a_model_does_not_have_are_refused(network):
    with pytest.raises(ValueError, match="does not take the degradation"):
        Restorer(*network, RestoreSettings(task="denoise"))
    with pytest.raises(ValueError, match="task: 'fog' given, one of blur_gauss"):
        Restorer(*network, RestoreSettings(task="fog"))
    with pytest.raises(ValueError, match="tile: 32 pixels with an overlap of 30"):
        Restorer(*network, RestoreSettings(tile=32, overlap=30))


def test_mperceiver_without_global_attention_is_restored_in_tiles():
    config = MPerceiverConfig.small()
    model = MPerceiver(config)
    params = parameters.initial_values(model, 0)
    sampler = DPMSolver(Schedule(), steps=1)
    tasks = with_new_tasks(TASKS, ("clean",), {"clean": "nearly_clean"})
    image = np.random.default_rng(0).random((64, 300, 3), np.float32)
    restorer = Restorer(model, params, RestoreSettings(min_size=64, tile=128), sampler=sampler, tasks=tasks)
    found = restorer.restore(image)
    # Untrained, the refinement returns the degraded image, whatever the tiles.
    np.testing.assert_allclose(found.image, image, atol=1e-5)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5) and len(found.probabilities) == 10
    assert Restorer(model, params, sampler=sampler, tasks=tasks).tile == AUTOMATIC_TILE
    whole = MPerceiver(replace(config, unet=replace(config.unet, self_attention=True)))
    assert Restorer(whole, params, sampler=sampler, tasks=tasks).tile == 0
    with pytest.raises(ValueError, match="tile: this model attends to the whole image"):
        Restorer(whole, params, RestoreSettings(tile=128), sampler=sampler, tasks=tasks)


def test_images_of_many_sizes_share_few_programs():
    restorer = Restorer.from_pretrained("base")
    sizes = {restorer.padded_size(height, width) for height in range(1, 1500, 7) for width in range(1, 1500, 7)}
    assert len(sizes) <= 100 and max(map(max, sizes)) <= 640
    assert restorer.padded_size(60, 300) == (64, 384)
    assert [restorer.tile_count(*size) for size in ((640, 640), (640, 641), (1024, 1024), (3000, 4000))] == [
        1,
        2,
        4,
        42,
    ]
    # Tiles are no larger than their number needs.
    assert restorer.padded_size(1024, 1024) == (576, 576)


@pytest.mark.parametrize("length", [641, 1000, 1024, 3072, 4096, 10000])
def test_tiles_that_fit_are_small_and_as_few(length):
    tile = fitting_tile(length, 640, 64, 64)
    assert tile <= 640 and tile % 64 == 0
    count = len(aligned_starts(length, 640, 64, 64))
    assert len(aligned_starts(length, tile, 64, 64)) == count
    assert tile == 128 or len(aligned_starts(length, tile - 64, 64, 64)) > count


def test_neighbouring_tiles_have_one_brightness():
    """The shipped model on a noisy gradient: against the whole image, tiles may differ by a constant, not by steps."""
    width, rng = 384, np.random.default_rng(0)
    gradient = np.linspace(0.25, 0.75, width)[None, :, None] + rng.normal(0, 0.04, (128, width, 3))
    image = gradient.clip(0, 1).astype(np.float32)
    whole, tiled = (Restorer.from_pretrained("base", RestoreSettings(tile=tile, overlap=32)) for tile in (0, 128))
    expected, found = whole(image), tiled(image)
    condition = tiled.condition(image)
    alone = lambda tile, *_: np.asarray(tiled._restore_one(tiled.params, tile[None], condition, tiled.key)[0][0])
    naive = restore_in_tiles(alone, image, 128, 32, 64)

    def steps(result):
        """The largest change of brightness from column to column that the whole image does not have."""
        difference = (result - expected).mean((0, 2))
        return np.ptp(np.convolve(difference, np.ones(16) / 16, "valid"))

    assert steps(found) < 1.5 / 255 < steps(naive)
