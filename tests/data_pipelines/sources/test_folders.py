"""Sources: what they find, how pairs are made, and what they say when something is wrong."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources.folders import ImageFolder, PairedFolders, bundled_photos, clean_stem


def image(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def test_photo_source_sorts_and_passes_over_other_files(tmp_path):
    for k, name in enumerate(["b.png", "a.JPG", "c.webp"]):
        image(tmp_path / name, k)
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / "._a.png").write_text("what some systems leave behind")
    source = ImageFolder(tmp_path)
    assert [source[k]["name"] for k in range(len(source))] == ["a", "b", "c"]
    assert source[1]["image"].shape == (4, 6, 3) and source[1]["image"].dtype == np.uint8


def test_several_folders(tmp_path):
    image(tmp_path / "x" / "1.png")
    image(tmp_path / "y" / "2.png")
    assert len(ImageFolder([tmp_path / "x", tmp_path / "y"])) == 2


def test_cache_decodes_once_within_its_room_and_stays_out_of_pickles(tmp_path):
    for name in "ab":
        image(tmp_path / f"{name}.png", 7)
    bytes_of_one = 6 * 4 * 3
    source = ImageFolder(tmp_path, cache_megabytes=1.5 * bytes_of_one / 1e6)
    first = source[0]["image"]
    assert source[0]["image"] is first and not first.flags.writeable
    assert source[1]["image"] is not source[1]["image"]  # no room for a second one
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2000
    np.testing.assert_array_equal(copy[0]["image"], first)
    assert copy[0]["image"] is copy[0]["image"]  # the room came back


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images in"):
        ImageFolder(tmp_path)
    image(tmp_path / "lq" / "a.png")
    with pytest.raises(FileNotFoundError, match="gt"):
        PairedFolders(tmp_path / "lq", tmp_path / "gt")


@pytest.mark.parametrize(
    ("stem", "pairing", "expected"),
    [
        ("0001_0.8_0.2", "prefix", "0001"),
        ("plain", "prefix", "plain"),
        ("a_b", "stem", "a_b"),
        ("rain-001", "^rain=>norain", "norain-001"),
        ("12_rain", r"(\d+)_rain$=>\1_clean", "12_clean"),
    ],
)
def test_pairing_rules(stem, pairing, expected):
    assert clean_stem(stem, pairing) == expected


def test_pairs_with_a_shared_clean_image(tmp_path):
    for k, name in enumerate(["1_0.8", "1_0.9", "2_0.8"]):
        image(tmp_path / "lq" / f"{name}.jpg", 10 * k)
    for name, value in (("1", 100), ("2", 200)):
        image(tmp_path / "gt" / f"{name}.png", value)
    source = pickle.loads(pickle.dumps(PairedFolders(tmp_path / "lq", tmp_path / "gt", "prefix")))
    elements = [source[k] for k in range(len(source))]
    assert [(e["name"], int(e["lq"][0, 0, 0]), int(e["gt"][0, 0, 0])) for e in elements] == [
        ("1_0.8", 0, 100),
        ("1_0.9", 10, 100),
        ("2_0.8", 20, 200),
    ]


def test_unpaired_names_are_listed_and_counted(tmp_path):
    for k in range(25):
        image(tmp_path / "lq" / f"lonely{k:02}.png")
    image(tmp_path / "gt" / "other.png")
    with pytest.raises(ValueError) as caught:
        PairedFolders(tmp_path / "lq", tmp_path / "gt")
    message = str(caught.value)
    assert message.startswith("26 images") and "and 6 more" in message
    assert "lonely00.png" in message and "lonely19.png" in message and "lonely20.png" not in message


def test_clean_image_without_degraded_one_is_unpaired_too(tmp_path):
    image(tmp_path / "lq" / "a.png")
    image(tmp_path / "gt" / "a.png")
    image(tmp_path / "gt" / "left_over.png")
    with pytest.raises(ValueError, match=r"1 images .*left_over"):
        PairedFolders(tmp_path / "lq", tmp_path / "gt")


def test_ambiguous_stem_unknown_rule_and_bad_expression(tmp_path):
    image(tmp_path / "lq" / "a.png")
    image(tmp_path / "gt" / "a.png")
    for pairing, message in (("name", "unknown pairing"), ("(=>x", "no regular expression")):
        with pytest.raises(ValueError, match=message):
            PairedFolders(tmp_path / "lq", tmp_path / "gt", pairing)
    image(tmp_path / "gt" / "a.jpg")
    with pytest.raises(ValueError, match="same stem"):
        PairedFolders(tmp_path / "lq", tmp_path / "gt")


def test_pair_of_two_sizes_names_both(tmp_path):
    image(tmp_path / "lq" / "a.png", size=(6, 4))
    image(tmp_path / "gt" / "a.png", size=(6, 5))
    with pytest.raises(ValueError, match=r"lq.a\.png is 6x4 .*gt.a\.png is 6x5"):
        PairedFolders(tmp_path / "lq", tmp_path / "gt")[0]


def test_bundled_photos():
    assert len(ImageFolder(bundled_photos("train"))) > len(ImageFolder(bundled_photos("heldout"))) > 8
    with pytest.raises(ValueError, match="heldout"):
        bundled_photos("test")


def test_names_are_equal_whatever_their_case_and_the_form_of_their_accents(tmp_path):
    for name in ("\u00e9.png", "B.png"):
        image(tmp_path / "lq" / name)
    for name in ("e\u0301.jpg", "b.PNG"):
        image(tmp_path / "gt" / name)
    assert len(PairedFolders(tmp_path / "lq", tmp_path / "gt")) == 2
    image(tmp_path / "lq" / "b.jpg")
    with pytest.raises(ValueError, match="have the same stem"):
        PairedFolders(tmp_path / "lq", tmp_path / "gt")
