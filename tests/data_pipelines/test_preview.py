"""The image test sheet."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines import preview
from data_pipelines.tasks import TASKS


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, mode in enumerate(("RGB", "L", "RGBA")):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(photos, output, *more):
    preview.main([f"--images={photos}", f"--output={output}", "--size=24", *more])
    return np.asarray(Image.open(output))


def test_sheet_shows_every_photograph_in_every_task(photos, tmp_path):
    output = tmp_path / "new" / "sheet.png"
    drawn = run(photos, output)
    gap, title, size = preview.GAP, preview.TITLE_HEIGHT, 24
    assert drawn.shape == (3 * (size + title + gap) + gap, 10 * (size + gap) + gap, 3)
    row, left = gap + title, gap + (1 + TASKS[8].label) * (size + gap)
    clean, dark = drawn[row : row + size, gap : gap + size], drawn[row : row + size, left : left + size]
    expected = preview.square_photograph(photos / "0.png", size)
    assert np.array_equal(clean, np.rint(expected * 255).astype(np.uint8))
    assert dark.mean() < 0.7 * clean.mean()
    assert [path.name for path in output.parent.iterdir()] == ["sheet.png"]


def test_sheet_depends_on_the_seed_only(photos, tmp_path):
    first, second, other = (
        run(photos, tmp_path / f"{name}.png", f"--seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    one_row = run(photos, tmp_path / "d.png", "--seed=1", "--rows=1")
    assert np.array_equal(one_row, first[: len(one_row)])


def test_a_failed_write_leaves_the_old_sheet(photos, tmp_path, monkeypatch):
    output = tmp_path / "sheet.png"
    output.write_bytes(b"old")

    class FullDisk:
        def save(self, path):
            path.write_bytes(b"half a")
            raise OSError("No space left on device")

    monkeypatch.setattr(preview, "sheet", lambda photographs, seed: FullDisk())
    with pytest.raises(SystemExit) as stopped:
        preview.main([f"--images={photos}", f"--output={output}", "--size=8"])
    assert stopped.value.code == 2
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "sheet.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=nowhere"], "nowhere is no folder"),
        (["--images=empty"], "holds no images"),
        (["--images=broken"], "cannot read the image broken/bad.png"),
        (["--output=sheet.xyz"], "image format"),
        (["--rows=0"], "--rows must be at least 1"),
        (["--seed=-1"], "--seed must not be negative"),
    ],
)
def test_errors_name_the_cause(arguments, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        preview.main(["--images=photos", "--output=sheet.png", "--size=8", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
