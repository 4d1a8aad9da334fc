import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mperceiver_jax.evaluate.report import sample_sheet, to_json, to_markdown, verdict, write_report

RESULTS = {
    "title": "Small run",
    "stages": [{"name": "B", "steps": 1200, "last_loss": 0.12345}, {"name": "C", "steps": 5, "seconds": 2.0}],
    "tasks": {
        "dehaze": {
            "images": 4,
            "degraded": {"psnr": 15.0, "ssim": 0.80, "lpips": 0.30},
            "restored": {"psnr": 17.5, "ssim": 0.85, "lpips": 0.40},
        },
        "denoise": {
            "images": 4,
            "degraded": {"psnr": float("inf"), "ssim": 0.70, "lpips": 0.20},
            "restored": {"psnr": 21.0, "ssim": 0.75, "lpips": 0.10},
        },
    },
    "predictor": {
        "accuracy": np.float32(0.75),
        "classes": ["dehaze", "denoise"],
        "confusion": np.array([[3, 1], [1, 3]]),
    },
    "parameters": {"unet": 865_910_724, "all": jnp.int32(7)},
    "seconds": {"training": 61.25},
    "device": "CPU",
    "versions": {"jax": "0.10.2"},
    "notes": ["toy | sizes"],
    "raw": {"losses": [1.0, float("nan")]},
}


def test_json_is_strict_and_keeps_everything_finite():
    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads(to_json(RESULTS), parse_constant=refuse)
    assert stored["tasks"]["denoise"]["degraded"]["psnr"] is None
    assert stored["raw"]["losses"] == [1.0, None]
    assert stored["predictor"]["confusion"] == [[3, 1], [1, 3]]
    assert stored["parameters"]["all"] == 7
    assert stored["tasks"]["dehaze"] == RESULTS["tasks"]["dehaze"]
    with pytest.raises(ValueError, match="object"):
        to_json({"notes": [object()]})


def test_markdown_has_the_numbers_in_tables():
    text = to_markdown(RESULTS)
    assert "# Small run" in text
    assert "| dehaze | 4 | 15.00 | 17.50 | +2.50 | 0.8000 | 0.8500 | +0.0500 | 0.3000 | 0.4000 |" in text
    assert "| denoise | 4 | inf | 21.00 | – |" in text
    assert "| **mean** |  | 15.00 | 17.50 | +2.50 | 0.7500 | 0.8000 | +0.0500 | 0.2500 | 0.2500 |" in text
    assert "The mean of PSNR (dB) is over 1 of 2 tasks." in text
    assert "Accuracy: 75.0 %." in text and "| denoise | 1 | 3 |" in text
    assert "| unet | 865,910,724 |" in text and "| training | 61.2 |" in text
    assert "| B | 1,200 | 0.1235 | – |" in text and "| C | 5 | – | 2 |" in text
    assert "toy | sizes" in text and "Device: CPU. Versions: jax 0.10.2." in text
    columns = [line.count("|") for line in text.splitlines() if line.startswith("| ")]
    assert columns[:5] == [12] * 5  # the first table is rectangular


def test_markdown_says_what_got_worse():
    text = to_markdown(RESULTS)
    assert "- dehaze: better in PSNR (+2.50 dB) and SSIM (+0.0500); worse in LPIPS (+0.1000)." in text
    assert "- denoise: better in SSIM (+0.0500) and LPIPS (-0.1000); not measured in PSNR." in text
    assert "worse than leaving the image alone**, by at least one metric, on 1 of 2 tasks: dehaze." in text
    good = {"tasks": {"dehaze": {"degraded": {"psnr": 15.0}, "restored": {"psnr": 16.0}}}}
    assert "worse" not in to_markdown(good)


def test_verdict_ignores_what_rounding_hides_and_knows_directions():
    assert verdict({"psnr": 20.0}, {"psnr": 20.004}) == "unchanged in PSNR"
    assert verdict({"psnr": 20.0}, {"psnr": 19.9}) == "worse in PSNR (-0.10 dB)"
    assert verdict({"lpips": 0.5}, {"lpips": 0.4}) == "better in LPIPS (-0.1000)"
    assert verdict({"ssim": 0.5}, {}) == "not measured in SSIM"
    with pytest.raises(ValueError, match="niqe"):
        verdict({"niqe": 1.0}, {"niqe": 2.0})


def test_both_files_are_written(tmp_path):
    as_json, as_markdown = write_report(RESULTS, tmp_path / "run")
    assert as_json == tmp_path / "run" / "report.json" and json.loads(as_json.read_text())["device"] == "CPU"
    assert as_markdown.read_text() == to_markdown(RESULTS)
    assert len(list((tmp_path / "run").iterdir())) == 2
    assert to_markdown({}) == "# Report\n"


def test_sample_sheet_shows_the_images_side_by_side(tmp_path):
    red, green, blue = (np.full((32, 64, 3), colour, np.float32) for colour in np.eye(3))
    rows = [("first", red, green, blue), ("no truth", red[:16], blue[:16], None)]
    sample_sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    for colour, height in [((255, 0, 0), 32 + 16), ((0, 255, 0), 32), ((0, 0, 255), 32 + 16)]:
        assert (sheet == colour).all(-1).sum() == height * 64
    left = np.nonzero((sheet == (255, 0, 0)).all(-1))[1].max()
    middle = np.nonzero((sheet == (0, 255, 0)).all(-1))[1]
    assert left < middle.min() and middle.max() < sheet.shape[1] // 3 * 2
    # Titles: something dark and grey above the first images.
    assert sheet[:16].min() < 128 and (sheet[:16] == sheet[:16, :, :1]).all()


def test_unfit_samples_are_refused_by_name(tmp_path):
    image = np.zeros((4, 4, 3))
    for rows, message in [
        ([], "nothing"),
        ([("night", image, image[..., 0], image)], "'night'.*h, w, 3"),
        ([("night", image, image * np.nan, image)], "'night'.*finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_sheet(rows, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_clean_images_have_no_gain_and_an_infinite_psnr_is_shown():
    clean = {"images": 4, "degraded": {"psnr": float("inf")}, "restored": {"psnr": 41.5}, "clean": True}
    rain = {"images": 4, "degraded": {"psnr": 20.0}, "restored": {"psnr": 22.0}}
    more = rain | {"restored": {"psnr": 24.0}}
    results = {"tasks": {"derain": rain, "dehaze": more, "clean": clean}}
    text = to_markdown(results)
    assert "| clean | 4 | inf | 41.50 | – |" in text
    assert "| **mean** |  | 20.00 | 23.00 | +3.00 |" in text
    assert "- clean: images that need no restoration come out at 41.50 dB; no gain is measured." in text
    assert "is over" not in text and "worse" not in text
    assert json.loads(to_json(results))["tasks"]["clean"]["degraded"]["psnr"] is None
