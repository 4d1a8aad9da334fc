import contextlib
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.image_encoding import encode_png
from mperceiver_jax.image_files import read_image
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.__main__ import main
from mperceiver_jax.restore.example import PHOTOGRAPH, SIDE
from mperceiver_jax.restore.file_restoration import memory_message
from mperceiver_jax.restore.jobs import plan
from tests.support.finished_run import finished_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    finished_run(path)
    return path


def pixels(height, width, channels=3, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype, endpoint=True)


def write(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(levels))
    return path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The whole command, once: a folder with all that folders hold.


@pytest.fixture(scope="module")
def restored(workdir, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    source = root / "in"
    write(source / "colour.png", pixels(40, 30))
    write(source / "deep" / "colour.png", pixels(17, 23, seed=1))
    write(source / "alpha.png", pixels(20, 20, 4))
    write(source / "sixteen.png", pixels(20, 20, 3, np.uint16))
    write(source / "grey.png", pixels(20, 20, 1))
    write(source / "dot.png", pixels(1, 1))
    Image.fromarray(pixels(24, 24)).save(source / "photo.jpg")
    (source / "empty.png").write_bytes(b"")
    (source / "truncated.jpg").write_bytes((source / "photo.jpg").read_bytes()[:600])
    (source / "words.png").write_text("not an image")
    (source / "notes.txt").write_text("left alone")
    (source / ".hidden.png").write_bytes(b"")
    before = {name: (source / name).read_bytes() for name in files(source)}
    out = root / "out"
    arguments = [str(source), "--recursive", "--side-by-side", f"--checkpoint={workdir}", f"--output={out}"]
    return source, before, out, arguments


@pytest.fixture(scope="module")
def outcome(restored):
    """(exit status, stdout, stderr) of the command."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        status = main(restored[3])
    return status, said.getvalue(), errors.getvalue()


def test_good_images_are_restored_and_bad_ones_named(restored, outcome):
    source, before, out, _ = restored
    status, _, errors = outcome
    good = ["alpha", "colour", "deep/colour", "dot", "grey", "photo", "sixteen"]
    assert status == 1
    assert files(out) == sorted(
        ["restored.csv", *(f"{name}{end}.png" for name in good for end in ("", "_side_by_side"))]
    )
    assert "3 of 10 images could not be restored" in errors
    for name in ("empty.png", "truncated.jpg", "words.png"):
        assert f"{source / name}: cannot read" in errors
    assert {name: (source / name).read_bytes() for name in files(source)} == before


def test_each_image_has_a_line_with_size_degradations_and_seconds(restored, outcome):
    (line,) = (line for line in outcome[1].splitlines() if line.startswith(str(restored[2] / "colour.png")))
    assert re.search(r"  30x40  (\w[\w ]* \d+ %(, )?){1,3}  \d+\.\d s", line)
    assert outcome[1].count("with compiling") == 1  # all are padded to one size
    assert "ddim, 2 steps, seed 42" in outcome[1]


def test_files_hold_what_the_restorer_makes(workdir, restored, outcome):
    source, _, out, _ = restored
    restorer = Restorer.from_checkpoint(workdir)
    levels = np.asarray(Image.open(source / "colour.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "colour.png")), restorer(levels))


def test_files_keep_size_depth_greyness_and_alpha(restored, outcome):
    source, _, out, _ = restored
    for name in ("alpha", "colour", "deep/colour", "dot", "grey", "sixteen"):
        before, after = read_image(source / f"{name}.png"), read_image(out / f"{name}.png")
        assert after.pixels.shape == before.pixels.shape
        assert (after.bits, after.grey) == (before.bits, before.grey), name
        assert (after.alpha is None) == (before.alpha is None)
    np.testing.assert_array_equal(read_image(out / "alpha.png").alpha, read_image(source / "alpha.png").alpha)


def test_side_by_side_shows_both(restored, outcome):
    source, _, out, _ = restored
    sheet = np.asarray(Image.open(out / "colour_side_by_side.png"))
    np.testing.assert_array_equal(sheet[:, :30], np.asarray(Image.open(source / "colour.png")))
    np.testing.assert_array_equal(sheet[:, -30:], np.asarray(Image.open(out / "colour.png")))


def test_results_are_kept_and_a_call_continues_where_it_stopped(restored, outcome):
    source, _, out, _ = restored
    (out / "dot.png").rename(out / "kept.png")
    try:
        again = plan([source], out, recursive=True, side_by_side=True)
        assert {job.source.name for job in again.jobs} == {"dot.png", "empty.png", "truncated.jpg", "words.png"}
        assert len(again.done) == 6
        assert len(plan([source], out, recursive=True, overwrite=True).jobs) == 10
    finally:
        (out / "kept.png").rename(out / "dot.png")


def test_nothing_is_loaded_where_all_is_done(tmp_path, capsys):
    write(tmp_path / "in" / "a.png", pixels(4, 4))
    write(tmp_path / "out" / "a.png", pixels(4, 4))
    assert main([str(tmp_path / "in"), "--checkpoint=nowhere", f"--output={tmp_path / 'out'}"]) == 0
    assert "results that exist already and are kept: 1; --overwrite" in capsys.readouterr().out


def test_images_are_known_by_content_and_other_files_are_named(tmp_path, capsys):
    write(tmp_path / "in" / "a.png", pixels(4, 4))
    Image.fromarray(pixels(4, 4)).save(tmp_path / "in" / "b.gif")
    shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / "c.without_meaning")
    (tmp_path / "in" / "notes\x1b[2J.txt").write_text("no image")
    write(tmp_path / "elsewhere" / "d.png", pixels(4, 4))
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    found = plan([tmp_path / "in"], tmp_path / "out", recursive=True)
    assert [job.source.name for job in found.jobs] == ["a.png", "b.gif", "c.without_meaning", "d.png"]
    assert main([str(tmp_path / "in"), "--checkpoint=nowhere", f"--output={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().out
    assert "left out, no images: " in said and "\x1b" not in said and "notes\\x1b[2J.txt" in said


def test_names_and_folders_that_cannot_be_written_are_found_first(tmp_path, capsys, monkeypatch):
    write(tmp_path / "in" / f"{'x' * 245}.png", pixels(4, 4))
    with pytest.raises(ValueError, match="more than 255 bytes; rename the image"):
        plan([tmp_path / "in"], tmp_path / "out", side_by_side=True)
    image = write(tmp_path / "a.png", pixels(4, 4))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("data_pipelines.files.tempfile.TemporaryFile", refuse)
    assert main([str(image), "--checkpoint=nowhere", f"--output={tmp_path / 'out'}"]) == 2
    assert f"Permission denied: '{tmp_path / 'out'}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate",
        "INTERNAL: Error dispatching computation: Out of memory allocating 3456001612 bytes.",
    ],
)
def test_a_device_without_memory_names_the_remedy(text):
    assert "--tile=512" in memory_message(RuntimeError(text))
    assert "--tile" not in memory_message(RuntimeError("INTERNAL: other"))


# What is refused before any model is loaded.


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_missing_checkpoint_is_one_message(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    image = write(tmp_path / "a.png", pixels(4, 4))
    out = tmp_path / "out"
    assert main([str(image), f"--checkpoint={tmp_path / name}", f"--output={out}"]) == 2
    assert f"{tmp_path / name} holds no run" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_of_weights_is_no_run_and_the_way_is_named(tmp_path, capsys):
    image = write(tmp_path / "a.png", pixels(4, 4))
    (tmp_path / "net.pth").write_bytes(b"weights")
    assert main([str(image), f"--checkpoint={tmp_path / 'net.pth'}", f"--output={tmp_path / 'out'}"]) == 2
    assert f"mperceiver_jax.convert import {tmp_path / 'net.pth'}" in capsys.readouterr().err


def test_stages_not_trained_yet_are_named(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "dual_branch")
    image = write(tmp_path / "a.png", pixels(4, 4))
    assert main([str(image), f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 2
    assert "no checkpoint of dual_branch" in capsys.readouterr().err


def test_missing_inputs_are_named(tmp_path, capsys):
    assert main([str(tmp_path / "a.png"), "--checkpoint=x", f"--output={tmp_path / 'out'}"]) == 2
    assert f"there is no {tmp_path / 'a.png'}" in capsys.readouterr().err
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*--recursive"):
        plan([tmp_path], tmp_path / "out")


def test_two_images_of_one_name_are_refused(tmp_path):
    write(tmp_path / "one" / "a.png", pixels(4, 4))
    write(tmp_path / "two" / "a.png", pixels(4, 4))
    with pytest.raises(ValueError, match=r"(?s)one name.*one/a\.png.*two/a\.png -> .*a_png\.png"):
        plan([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    (tmp_path / "two" / "a.png").rename(tmp_path / "two" / "A.jpg")
    # Names that differ in case alone are one name on some file systems.
    jobs = plan([tmp_path / "one", tmp_path / "two"], tmp_path / "out").jobs
    assert [job.target.name for job in jobs] == ["a_png.png", "A_jpg.png"]
    write(tmp_path / "one" / "b.png", pixels(4, 4))
    write(tmp_path / "one" / "b_side_by_side.png", pixels(4, 4))
    assert len(plan([tmp_path / "one"], tmp_path / "out").jobs) == 3
    with pytest.raises(ValueError, match="one name"):
        plan([tmp_path / "one"], tmp_path / "out", side_by_side=True)


def test_folders_keep_their_subfolders_and_files_named_twice_are_taken_once(tmp_path):
    for name in ("a.png", "x/a.png", "x/y/a.PNG"):
        write(tmp_path / "in" / name, pixels(4, 4))
    jobs = plan([tmp_path / "in", tmp_path / "in" / "a.png"], tmp_path / "out", recursive=True).jobs
    assert [job.target for job in jobs] == [tmp_path / "out" / name for name in ("a.png", "x/a.png", "x/y/a.png")]
    assert [job.source.name for job in plan([tmp_path / "in"], tmp_path / "out").jobs] == ["a.png"]


def test_inputs_are_never_written_to(tmp_path):
    image = write(tmp_path / "in" / "a.png", pixels(4, 4))
    for output in (tmp_path / "in", tmp_path / "in" / ".." / "in"):
        with pytest.raises(ValueError, match="input folder"):
            plan([tmp_path / "in"], output, overwrite=True)
    with pytest.raises(ValueError, match="input folder"):
        plan([tmp_path / "in"], tmp_path / "in" / "out", recursive=True)
    with pytest.raises(ValueError, match="is an input"):
        plan([image], tmp_path / "in", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        plan([tmp_path / "in"], image)
    assert plan([tmp_path / "in"], tmp_path / "in" / "out")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    said = capsys.readouterr().out
    assert exit.value.code == 0
    assert "examples:" in said and "exit status" in said
    with pytest.raises(SystemExit) as exit:
        main(["a.png"])
    assert exit.value.code == 2


def test_the_bundled_weights_restore_the_example(tmp_path, capsys):
    """No checkpoint and no image are named, as in `make restore`."""
    assert main(["--example", "--side-by-side", f"--output={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("base: moving averages")
    assert files(tmp_path) == [
        "degraded/example_denoise.png",
        "example_denoise.png",
        "example_denoise_side_by_side.png",
    ]
    truth = np.asarray(Image.open(PHOTOGRAPH)) / np.float32(255)
    top, left = (max(0, side - SIDE) // 2 for side in truth.shape[:2])
    truth = truth[top : top + SIDE, left : left + SIDE]
    degraded, restored = (read_image(tmp_path / name).pixels for name in files(tmp_path)[:2])
    assert psnr(restored, truth) > psnr(degraded, truth) + 1


def test_an_image_or_the_example_is_needed(tmp_path, capsys):
    assert main([f"--output={tmp_path / 'out'}"]) == 2
    assert "name an image or a folder of images, or give --example" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
