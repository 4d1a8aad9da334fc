"""Two folders of files as they are: scikit-image's figures, whatever the names, the depth and the damage."""

import json

import numpy as np
import pytest

from mperceiver_jax.evaluate.__main__ import main
from mperceiver_jax.image_encoding import encode_png
from tests.support.evaluation_trees import photos, save, table

measure = pytest.importorskip("skimage.metrics")


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_two_folders_of_sixteen_bits_are_measured_as_they_are_stored(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 65536, (8, 9, 1)), np.ones((6, 6, 3), int)).astype(np.uint16)
    made = np.clip(truth + rng.integers(-90, 90, truth.shape), 0, 65535).astype(np.uint16)
    for side, pixels in (("gt", truth), ("made", made)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").write_bytes(encode_png(pixels))
    arguments = [f"--data={tmp_path / 'gt'}", "--protocol=folder", f"--output={tmp_path / 'out'}", "--show=0"]
    assert main([f"--outputs={tmp_path / 'made'}", *arguments]) == 0
    found = table(tmp_path / "out")["folder", "a"]
    expected = (
        measure.peak_signal_noise_ratio(truth, made),
        measure.structural_similarity(truth, made, channel_axis=-1, data_range=65535),
    )
    assert (float(found["psnr"]), float(found["ssim"])) == pytest.approx(expected, abs=1e-6)
    assert "Noise:" not in (tmp_path / "out" / "report.md").read_text()


def test_images_that_turn_out_to_be_damaged_are_all_named_and_the_others_kept(tmp_path, capsys):
    for k, photo in enumerate(photos(4, 200, 200)):
        for side in ("gt", "made"):
            path = tmp_path / side / f"{k}.jpg"
            save(path, photo)
            if side == "made" and k in (1, 2):
                path.write_bytes(path.read_bytes()[:-400])
    arguments = [f"--data={tmp_path / 'gt'}", "--protocol=folder", f"--output={tmp_path / 'out'}", "--show=0"]
    assert main([f"--outputs={tmp_path / 'made'}", *arguments]) == 1
    told = capsys.readouterr().err
    assert "made/1.jpg" in told and "made/2.jpg" in told and "the same command goes on" in told
    assert len((tmp_path / "out" / "images.jsonl").read_text().splitlines()) == 1 + 2
    assert main([f"--outputs={tmp_path / 'made'}", *arguments, "--partial", "--restart"]) == 0
    assert [name for _, name in table(tmp_path / "out")] == ["0", "3"]


def test_an_image_too_small_for_a_metric_and_one_that_is_equal_do_not_spoil_the_others(tmp_path, capsys):
    rng = np.random.default_rng(0)
    expected = []
    for k, photo in enumerate(photos(4, 40, 60)):
        truth = photo[:5] if k == 0 else photo
        made = truth if k == 1 else np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
        save(tmp_path / "gt" / f"{k}.png", truth)
        save(tmp_path / "made" / f"{k}.png", made)
        if k > 1:
            expected.append(measure.peak_signal_noise_ratio(truth, made))
    arguments = [f"--data={tmp_path / 'gt'}", "--protocol=folder", f"--output={tmp_path / 'out'}", "--show=0"]
    assert main([f"--outputs={tmp_path / 'made'}", *arguments]) == 1
    said = capsys.readouterr().err
    assert "folder/0:" in said and "the others are measured" in said
    assert main([f"--outputs={tmp_path / 'made'}", *arguments, "--partial"]) == 0
    found = report(tmp_path / "out")
    assert found["sets"]["folder"]["output"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert any(one.startswith("left out: folder/0:") for one in found["warnings"])
    assert "folder: 1 of 3 outputs equal the ground truth; PSNR is the mean of the others" in found["warnings"]


def test_folders_equal_scikit_image_whatever_the_names(tmp_path):
    rng = np.random.default_rng(0)
    expected = []
    for k, photo in enumerate(photos()):
        noisy = np.clip(photo + rng.normal(0, 20, photo.shape), 0, 255).astype(np.uint8)
        save(tmp_path / "gt" / f"norain-{k}.png", photo)
        save(tmp_path / "made" / f"rain-{k}.png", noisy)
        expected.append(measure.peak_signal_noise_ratio(photo, noisy))
    folders = [f"--outputs={tmp_path / 'made'}", f"--data={tmp_path / 'gt'}", f"--output={tmp_path / 'out'}"]
    assert main([*folders, "--protocol=folder", "--pairing=^rain=>norain", "--metrics=psnr,fid,kid,psnr_y",
                 "--features=tests.evaluate.metrics.test_fid_kid:mean_colour"]) == 0  # fmt: skip
    found = report(tmp_path / "out")["sets"]["folder"]["output"]
    assert found["psnr"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert found["psnr_y"] > found["psnr"] and found["fid"] > 0 and "kid" in found
    # The same again, with the first in its table.
    again = [*folders[:2], f"--output={tmp_path / 'two'}", "--protocol=folder", "--pairing=^rain=>norain"]
    assert main([*again, f"--compare={tmp_path / 'out'}", "--title=second", "--show=0"]) == 0
    text = (tmp_path / "two" / "report.md").read_text()
    assert main([*again, f"--compare={tmp_path}"]) == 2
    assert "| **second** |" in text and "| made |" in text and not (tmp_path / "two" / "index.html").exists()
