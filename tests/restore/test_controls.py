"""Strength, detail, degradations, only, skip and masks."""

import csv
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from mperceiver_jax.image_files import read_image
from mperceiver_jax.image_metadata import settings_in
from mperceiver_jax.restore import Restorer, RestoreSettings
from mperceiver_jax.restore.__main__ import main
from mperceiver_jax.restore.controls import blend, given_probabilities, strength_of, task_named
from mperceiver_jax.restore.options import as_text, parser, settings_of
from tests.support.finished_run import finished_run

NAMES = ("dehaze", "derain", "clean")
PREDICTED = {"dehaze": 0.6, "derain": 0.3, "clean": 0.1}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    finished_run(path)
    return path


@pytest.fixture(scope="module")
def whole(workdir):
    return Restorer.from_checkpoint(workdir)


def with_settings(workdir, **changes):
    return Restorer.from_checkpoint(workdir, RestoreSettings(**changes))


def image(height=48, width=48, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def test_degradations_are_known_by_their_task_and_their_title():
    assert task_named("haze", NAMES) == task_named("dehaze", NAMES) == "dehaze"
    with pytest.raises(ValueError, match="no degradation is named 'fog'; this model knows dehaze, derain, clean"):
        task_named("fog", NAMES)


def test_given_degradations_sum_to_one_and_clean_takes_what_is_missing():
    given = lambda degradations, known=NAMES, clean="clean": given_probabilities(
        None, known, clean, degradations, (), ()
    )
    np.testing.assert_allclose(given({"haze": 0.7, "rain": 0.2}), [[0.7, 0.2, 0.1]], atol=1e-6)
    np.testing.assert_allclose(given({"haze": 3, "rain": 1}), [[0.75, 0.25, 0]], atol=1e-6)
    np.testing.assert_allclose(given({"haze": 0.4}, NAMES[:2], ""), [[1, 0]], atol=1e-6)
    assert given({}) is None


def test_tasks_that_are_not_restored_count_as_clean():
    given = lambda only=(), skip=(): given_probabilities(PREDICTED, NAMES, "clean", {}, only, skip)
    np.testing.assert_allclose(given(only=("derain",)), [[0, 0.3, 0.7]], atol=1e-6)
    np.testing.assert_allclose(given(skip=("rain",)), [[0.6, 0, 0.4]], atol=1e-6)
    strength = lambda value, only=(), skip=(): strength_of(value, PREDICTED, NAMES, "clean", only, skip)
    assert strength(0.5) == 0.5
    assert strength(1.0, only=("derain",)) == pytest.approx(0.3 + 0.1)
    assert strength(0.5, skip=("derain",)) == pytest.approx(0.5 * 0.7)
    assert strength({"rain": 0.5}) == pytest.approx(0.6 + 0.15 + 0.1)
    even = given_probabilities({"dehaze": 1.0, "derain": 0.0}, NAMES[:2], "", {}, (), ("dehaze",))
    np.testing.assert_allclose(even, [[0.5, 0.5]])


def test_a_mask_limits_the_restoration_and_its_edge_is_soft():
    degraded, restored, mask = np.zeros((40, 60, 3), np.float32), np.ones((40, 60, 3), np.float32), np.zeros((40, 60))
    mask[:, 30:] = 1
    hard = blend(degraded, restored, 1.0, mask, 0.0)
    np.testing.assert_array_equal(hard, np.repeat(mask[..., None], 3, -1))
    soft = blend(degraded, restored, 0.5, mask, 3.0)
    row = soft[20, :, 0]
    assert (np.diff(row) >= 0).all() and 0 < row[27] < row[32] < 0.5 and row[10] == 0
    np.testing.assert_allclose(row[50], 0.5, atol=1e-6)
    assert blend(degraded, restored, 1.0, None, 8.0) is restored
    with pytest.raises(ValueError, match="the mask is 60x40 and the image 40x40"):
        blend(degraded[:, :40], restored[:, :40], 1.0, mask, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, "strength: between 0 and 1, not 1.5"),
        ({"strength": {"derain": -1.0}}, r"strength: between 0 and 1, not -1.0 \(derain\)"),
        ({"detail": 2.0}, "detail: between 0 and 1"),
        ({"feather": -1.0}, "feather: at least 0"),
        ({"degradations": {"derain": 0.0}}, "degradations: at least 0 and finite, one of them above 0"),
        ({"only": ("derain",), "skip": ("dehaze",)}, "only, skip: give one"),
        ({"only": ("derain",), "degradations": {"derain": 1.0}}, "leave out only and skip"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RestoreSettings(**settings)


def test_unknown_tasks_are_refused_when_the_model_is_opened(workdir):
    for settings in ({"only": ("fog",)}, {"strength": {"fog": 0.5}}, {"degradations": {"fog": 1.0}}):
        with pytest.raises(ValueError, match="no degradation is named 'fog'"):
            with_settings(workdir, **settings)


def test_strength_moves_from_the_image_to_its_restoration(workdir, whole):
    lq = image()
    full = whole.restore(lq)
    np.testing.assert_array_equal(with_settings(workdir, strength=0.0)(lq), lq)
    half = with_settings(workdir, strength=0.5).restore(lq)
    np.testing.assert_allclose(half.image, (lq + full.image) / 2, atol=1e-5)
    assert (half.strength, full.strength) == (0.5, 1.0)
    some = with_settings(workdir, strength={"derain": 0.0}).restore(lq)
    assert some.strength == pytest.approx(1 - full.probabilities["derain"], abs=1e-4)


def test_given_degradations_take_the_place_of_the_prediction(workdir, whole):
    lq = image()
    predicted = whole.restore(lq)
    same = with_settings(workdir, degradations=predicted.probabilities).restore(lq)
    np.testing.assert_allclose(same.image, predicted.image, atol=1e-3)
    other = with_settings(workdir, degradations={"lowlight": 1.0}).restore(lq)
    assert other.probabilities["lowlight"] == pytest.approx(1, abs=1e-6)
    assert np.abs(other.image - predicted.image).max() > 1e-3
    only = with_settings(workdir, only=("lowlight",)).restore(lq)
    assert only.probabilities["lowlight"] == pytest.approx(1, abs=1e-6)
    assert only.strength == pytest.approx(predicted.probabilities["lowlight"], abs=1e-4)


def test_detail_moves_from_the_refinement_to_the_decoded_image(workdir, whole):
    lq = image()
    plain, refined = with_settings(workdir, refine=False)(lq), whole(lq)
    most = with_settings(workdir, detail=1.0)(lq)
    np.testing.assert_allclose(most, plain, atol=1e-4)
    assert np.abs(plain - refined).max() > 1e-3


def test_options_become_settings_and_a_text_that_repeats_them():
    words = [
        "a.png",
        "--output=b",
        "--strength=derain=0.5,haze=1",
        "--degradations=haze=0.7",
        "--mask=a mask.png",
        "--no-refine",
    ]
    options = parser().parse_args(words)
    assert settings_of(options)["strength"] == {"derain": 0.5, "haze": 1.0}
    text = as_text(options)
    assert "--strength=derain=0.5,haze=1" in text and "--no-refine" in text and "'--mask=a mask.png'" in text
    again = parser().parse_args(["a.png", "--output=b", *shlex.split(text)])
    assert vars(again) == vars(options)
    for wrong in ("--strength=much", "--degradations=haze", "--degradations=haze=1,haze=0"):
        with pytest.raises(SystemExit):
            parser().parse_args(["a.png", "--output=b", wrong])


# The command.


def test_the_command_applies_controls_and_writes_them_into_the_file(workdir, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray((image(40, 30) * 255).astype(np.uint8)).save(source / "a.jpg", dpi=(200, 200))
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(tmp_path / "nowhere.png")
    call = [str(source), f"--checkpoint={workdir}", f"--mask={tmp_path / 'nowhere.png'}", "--format=same"]
    assert main([*call, f"--output={tmp_path / 'out'}", "--strength=0.5", "--quality=100"]) == 0
    assert "strength 0.5" in capsys.readouterr().out
    before, after = read_image(source / "a.jpg"), read_image(tmp_path / "out" / "a.jpg")
    np.testing.assert_allclose(after.pixels, before.pixels, atol=6 / 255)  # Nothing is white in the mask.
    assert "--strength=0.5" in settings_in(after.metadata.xmp) and after.metadata.dpi == (200, 200)
    (row,) = csv.DictReader((tmp_path / "out" / "restored.csv").open())
    assert (row["status"], row["width"], row["strength"]) == ("restored", "30", "0.5")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(workdir, tmp_path, capsys):
    Image.fromarray((image(40, 30) * 255).astype(np.uint8)).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"a\.png -> .*out/a\.png  30x40  as a whole  \w[\w ]* \d+ %.*about \d+\.\d s", said)
    assert not (tmp_path / "out").exists()


def test_animations_are_restored_frame_by_frame(workdir, tmp_path):
    frames = [Image.fromarray((image(20, 20, seed) * 255).astype(np.uint8)) for seed in range(2)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=[30, 90], lossless=True)
    assert main([str(tmp_path / "a.webp"), f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}"]) == 0
    restorer = Restorer.from_checkpoint(workdir)
    with Image.open(tmp_path / "out" / "a.png") as result:
        for index, frame in enumerate(frames):
            result.seek(index)
            np.testing.assert_array_equal(np.asarray(result.convert("RGB")), restorer(np.asarray(frame)))
            assert result.info["duration"] == (30, 90)[index]


def test_models_that_predict_nothing_take_no_controls_by_degradation():
    for settings in ({"only": ("derain",)}, {"strength": {"derain": 0.5}}, {"degradations": {"derain": 1.0}}):
        with pytest.raises(ValueError, match=r"predicts no degradation|does not take the degradation"):
            Restorer.from_pretrained("fast", RestoreSettings(**settings))
    with pytest.raises(ValueError, match=r"detail: .* is no diffusion model"):
        Restorer.from_pretrained("fast", RestoreSettings(detail=0.5))


def test_watching_restores_what_arrives_and_tries_what_failed_once(workdir, tmp_path, monkeypatch, capsys):
    source, out, rounds = tmp_path / "in", tmp_path / "out", iter(range(6))
    picture = Image.fromarray((image(40, 30) * 255).astype(np.uint8))
    source.mkdir()
    picture.save(source / "first.png")

    def sleep(seconds):
        match next(rounds):
            case 0:
                picture.save(source / "second.png")
                (source / "broken.png").write_bytes(b"half a file")
            case 5:
                raise KeyboardInterrupt

    monkeypatch.setattr("mperceiver_jax.restore.running.time.sleep", sleep)
    assert main([str(source), f"--checkpoint={workdir}", f"--output={out}", "--watch"]) == 130
    assert {path.name for path in out.iterdir()} == {"first.png", "second.png", "restored.csv"}
    assert [row["status"] for row in csv.DictReader((out / "restored.csv").open())] == [
        "restored",
        "failed",
        "restored",
    ]
    assert capsys.readouterr().err.count("broken.png: cannot read") == 1


def test_a_folder_is_needed_to_watch_and_a_quality_has_a_range(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for option, message in (
        ("--watch", "name a folder to be watched"),
        ("--quality=0", "--quality: between 1 and 100"),
    ):
        assert main([str(tmp_path / "a.png"), f"--output={tmp_path / 'out'}", option]) == 2
        assert message in capsys.readouterr().err


def test_a_format_that_holds_no_animation_is_refused_before_restoring(workdir, tmp_path, monkeypatch, capsys):
    frames = [Image.fromarray((image(20, 20, seed) * 255).astype(np.uint8)) for seed in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(Restorer, "restore", lambda *_: pytest.fail("was restored"))
    assert (
        main([str(tmp_path / "a.gif"), f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}", "--format=jpg"]) == 1
    )
    assert "does not hold an animation; take --format=png" in capsys.readouterr().err
