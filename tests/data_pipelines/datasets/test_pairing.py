"""Pairs from trees with faults in them: each is told by name, by kind, and left out."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.io

from data_pipelines.datasets.file_lists import read_list
from data_pipelines.datasets.layouts import layout_named
from data_pipelines.datasets.pairing import find
from data_pipelines.datasets.patterns import shown, without_suffix
from data_pipelines.datasets.splits import Fault, Rule, Split
from data_pipelines.datasets.tree import Tree
from data_pipelines.prepare import own_rule
from tests.support.dataset_trees import write_image


def split_of(name: str, split: str) -> Split:
    return next(part for part in layout_named(name).splits if part.name == split)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def told(found) -> set[tuple[str, str]]:
    return {(fault.kind, fault.name) for fault in found.faults}


def ids(found) -> list[str]:
    return [pair.id for pair in found.pairs]


def test_faults_of_a_tree_of_same_names(tmp_path):
    low, high = "LOL/our485/low/", "LOL/our485/high/"
    touch(tmp_path, *(f"{low}{n}.png" for n in "1234"), *(f"{high}{n}.png" for n in "12356"), high + "6.jpg")
    touch(tmp_path, low + ".DS_Store", low + "readme.txt", "LOL/other/7.png")
    found = find(Tree(tmp_path), split_of("lol_v1", "train"))
    assert ids(found) == ["our485/low/1", "our485/low/2", "our485/low/3"]
    assert told(found) == {
        ("missing", low + "4.png"),
        ("missing", high + "5.png"),
        ("duplicate", high + "6.png"),
        ("duplicate", high + "6.jpg"),
        ("count", "train"),
    }
    assert not [f for f in find(Tree(tmp_path), split_of("lol_v1", "train"), subset=True).faults if f.kind == "count"]


def test_misnamed_and_unpublished_images(tmp_path):
    rainy, clean = "Derain/rainy/", "Derain/gt/"
    touch(tmp_path, *(f"{rainy}rain-{n}.png" for n in range(1, 201) if n not in (7, 11)), rainy + "rain-300.png")
    touch(tmp_path, *(f"{clean}norain-{n}.png" for n in range(1, 201)), rainy + "rian-11.png", clean + "norain-300.png")
    found = find(Tree(tmp_path), split_of("rain100l", "train"))
    assert told(found) == {
        ("missing", rainy + "rain-7"),
        ("missing", rainy + "rain-11"),
        ("misnamed", rainy + "rian-11.png"),
        ("extra", rainy + "rain-300.png"),
        ("count", "train"),
    }
    assert len(found.pairs) == 198


def test_many_degraded_images_of_one_clean(tmp_path):
    values = [(a, b) for a in (0.8, 0.85, 0.9, 0.95, 1) for b in (0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2)]
    hazy = [f"synthetic/part1/0005_{a}_{b}.jpg" for a, b in values]
    touch(tmp_path, *hazy[1:], "synthetic/part1/0005_0.7_0.2.jpg", "original/0005.jpg", "original/0006.jpg")
    found = find(Tree(tmp_path), split_of("reside_ots", "train"))
    assert len(found.pairs) == 34 and len({pair.gt for pair in found.pairs}) == 1
    assert told(found) == {
        ("missing", "synthetic/part1/0005_0.8_0.04"),
        ("extra", "synthetic/part1/0005_0.7_0.2.jpg"),
        ("missing", "original/0006.jpg"),
        ("count", "train"),
    }


def test_images_of_another_split_are_no_fault(tmp_path):
    touch(tmp_path, *(f"train/input/im_{n}_s80_a04.png" for n in ("0300", "0301", "0350", "0351")))
    touch(tmp_path, *(f"train/gt/im_{n}.png" for n in ("0300", "0301", "0350", "0351")))
    found = find(Tree(tmp_path), split_of("outdoor_rain", "train"), subset=True)
    assert ids(found) == ["train/input/im_0300_s80_a04", "train/input/im_0351_s80_a04"] and not found.faults
    (tmp_path / "train/input/im_0351_s80_a04.png").unlink()
    found = find(Tree(tmp_path), split_of("outdoor_rain", "train"), subset=True)
    assert told(found) == {("missing", "train/gt/im_0351.png")}


def test_a_list_decides_who_belongs(tmp_path):
    scene = "RealBlur-J_ECC/scene001/"
    touch(tmp_path, *(f"{scene}{kind}/{kind}_{n}.png" for kind in ("blur", "gt") for n in (1, 2, 3)))
    split = split_of("realblur_j", "test")
    assert told(find(Tree(tmp_path), split)) == {("absent", "test")}
    lines = [f"{scene}gt/gt_{n}.png {scene}blur/blur_{n}.png" for n in (1, 3)]
    (tmp_path / split.listed).write_text("\n".join(lines))
    found = find(Tree(tmp_path), split, subset=True)
    assert [pair.lq.path.name for pair in found.pairs] == ["blur_1.png", "blur_3.png"] and not found.faults
    assert told(find(Tree(tmp_path), split)) == {("count", "test")}
    # A list of the user's, made elsewhere; a name in it is not there.
    (tmp_path / "mine.txt").write_text("/home/me/scene001/blur/blur_2.png  # a comment\nscene001/blur/blur_9.png\n")
    found = find(Tree(tmp_path), split, listed=read_list(tmp_path / "mine.txt"))
    assert [pair.lq.path.name for pair in found.pairs] == ["blur_2.png"]
    assert told(found) == {("missing", "scene001/blur/blur_9")}


def test_two_sets_that_come_in_one_folder_and_a_image_called_like_a_missing_one(tmp_path):
    tops = {letter: f"RealBlur-{letter}_ECC" for letter in "JR"}
    for letter, top in tops.items():
        scenes = {"train": f"{top}/scene001", "test": f"{top}/scene002"}
        for part, scene in scenes.items():
            touch(tmp_path, *(f"{scene}/{kind}/{kind}_{n}.png" for kind in ("blur", "gt") for n in (1, 2, 3)))
            lines = [f"{scene}/gt/gt_{n}.png {scene}/blur/blur_{n}.png" for n in (1, 2, 3)]
            (tmp_path / f"RealBlur_{letter}_{part}_list.txt").write_text("\n".join(lines))
    for letter, top in tops.items():
        found = find(Tree(tmp_path), split_of(f"realblur_{letter.lower()}", "train"), subset=True)
        assert ids(found) == [f"{top}/scene001/blur/blur_{n}" for n in (1, 2, 3)] and not found.faults
    # Image 2 of the test scene is not taken for it, and the clean half of the list is no fault.
    missing, without = f"{tops['J']}/scene001/blur/blur_2", f"{tops['J']}/scene001/gt/gt_3"
    for name in (missing, without):
        (tmp_path / f"{name}.png").unlink()
    found = find(Tree(tmp_path), split_of("realblur_j", "train"), subset=True)
    assert ids(found) == [f"{tops['J']}/scene001/blur/blur_1"]
    assert told(found) == {("missing", missing), ("missing", f"{tops['J']}/scene001/blur/blur_3.png")}


def test_what_lies_beside_published_images_is_no_fault(tmp_path):
    touch(tmp_path, *(f"image_SRF_{n}/img_001_SRF_{n}_{kind}.png" for n in (2, 4) for kind in ("HR", "LR", "A+")))
    found = find(Tree(tmp_path), split_of("urban100", "test"), subset=True)
    assert ids(found) == ["image_SRF_4/img_001_SRF_4_HR"] and not found.faults


def test_damaged_and_lonely_matlab_files_are_faults(tmp_path):
    split = split_of("sidd", "val")
    for name in ("Noisy", "Gt"):
        scipy.io.savemat(tmp_path / f"Validation{name}BlocksSrgb.mat", {"x": np.zeros((2, 3, 4, 4, 3), np.uint8)})
    assert len(find(Tree(tmp_path), split, subset=True).pairs) == 6
    clean = tmp_path / "ValidationGtBlocksSrgb.mat"
    clean.write_bytes(b"")
    assert told(find(Tree(tmp_path), split, subset=True)) == {("unreadable", clean.name)}
    clean.unlink()
    assert told(find(Tree(tmp_path), split, subset=True)) == {("missing", "ValidationNoisyBlocksSrgb.mat")}


def test_names_of_a_list_that_are_not_there(tmp_path):
    touch(tmp_path, *(f"lq/{n}.png" for n in "12"), *(f"gt/{n}.png" for n in "12"))
    split = Split("train", 0, (Rule("lq/{name}", "gt/{name}"),))
    found = find(Tree(tmp_path), split, listed=["1", "2", "8"])
    assert len(found.pairs) == 2 and told(found) == {("missing", "8")}


def dpdd(root, sources, targets):
    touch(root, *(f"train_c/source/1P0A{n}.png" for n in sources), *(f"train_c/target/1P0A{n}.png" for n in targets))
    return find(Tree(root), split_of("dpdd", "train"))


def numbers(found):
    return [(int(pair.lq.path.stem[4:]), int(pair.gt.path.stem[4:])) for pair in found.pairs]


def test_pairs_by_order_where_nothing_is_missing(tmp_path):
    pairs = [(1000 + 4 * k + k % 2, 1002 + 4 * k) for k in range(350)]
    found = dpdd(tmp_path, *zip(*pairs, strict=True))
    assert numbers(found) == pairs and not found.faults


def test_pairs_by_number_where_some_are_missing_and_none_where_numbers_leave_a_doubt(tmp_path):
    firsts = np.cumsum(np.random.default_rng(0).integers(2, 9, 30)) + 1000
    sources, targets = [n for n in firsts if n != firsts[3]], [n + 1 for n in firsts if n != firsts[20]]
    found = dpdd(tmp_path / "gaps", sources, targets)
    assert numbers(found) == [(n, n + 1) for k, n in enumerate(firsts) if k not in (3, 20)]
    lonely = {f"train_c/target/1P0A{firsts[3] + 1}.png", f"train_c/source/1P0A{firsts[20]}.png"}
    assert told(found) == {("count", "train"), *(("missing", name) for name in lonely)}
    # Each degraded image is between two clean ones, as near to the one as to the other.
    even = range(1000, 1040, 2)
    found = dpdd(tmp_path / "even", [n for n in even if n != 1006], [n + 1 for n in even if n != 1028])
    lonely = ["train_c/source", "train_c/target/1P0A1005.png", "train_c/source/1P0A1028.png"]
    assert not found.pairs and told(found) == {("count", "train"), *(("missing", name) for name in lonely)}


def test_images_below_and_beside_those_of_a_split_are_told(tmp_path):
    for top in ("", "backup/"):
        touch(tmp_path, *(f"{top}train/blur/{n}.png" for n in "12"), *(f"{top}train/sharp/{n}.png" for n in "12"))
    touch(tmp_path, "train/blur/old/1.png", "train/notes/1.png")
    split = replace(split_of("gopro", "train"), rules=split_of("gopro", "train").rules[1:])
    found = find(Tree(tmp_path), split, subset=True)
    assert ids(found) == ["train/blur/1", "train/blur/2"]
    copies = [f"backup/train/{side}/{n}.png" for side in ("blur", "sharp") for n in "12"]
    assert told(found) == {("extra", name) for name in ("train/blur/old/1.png", *copies)}


def test_of_the_users_own_folders_everything_below_belongs(tmp_path):
    touch(tmp_path, "1.png", "x/1.png", "x/y/2.png")
    (clean,) = layout_named("clean").splits
    found = find(Tree(tmp_path), clean)
    assert ids(found) == ["1", "x/1", "x/y/2"] and not found.faults
    touch(tmp_path, "lq/s/a_1.png", "lq/b_2.png", "gt/s/a.png", "gt/b.png")
    for pairing, side in (("prefix", "gt"), ("{f:.*}{n}_{k}=>{f:.*}{n}", "gt")):
        found = find(Tree(tmp_path), Split("train", 0, (own_rule("lq", side, pairing),)))
        assert ids(found) == ["lq/b_2", "lq/s/a_1"] and not found.faults


def test_outdoor_rain_has_fifteen_images_of_each_scene(tmp_path):
    names = [f"im_0400_s{s}_a{a}" for s in ("80", "85", "90", "95", "100") for a in ("04", "05", "06")]
    touch(tmp_path, "test1/gt/im_0400.png", *(f"test1/input/{name}.png" for name in names[1:]))
    touch(tmp_path, "test1/input/im_0400_s999_a99.png")
    found = find(Tree(tmp_path), split_of("outdoor_rain", "test1"))
    assert len(found.pairs) == 14
    gone, strange = f"test1/input/{names[0]}", "test1/input/im_0400_s999_a99.png"
    assert told(found) == {("count", "test1"), ("missing", gone), ("extra", strange)}


def test_copies_are_refused_and_nothing_is_absent(tmp_path):
    touch(tmp_path, *(f"{top}/train/{side}/1.png" for top in ("a", "b") for side in ("blur", "sharp")))
    with pytest.raises(ValueError, match=r"several folders hold the split 'train': .*/a, .*/b; give one of them"):
        find(Tree(tmp_path), split_of("gopro", "train"))
    found = find(Tree(tmp_path), split_of("gopro", "test"))
    assert found.faults == (Fault("absent", "test", found.faults[0].what),) and "test/{scene}" in found.faults[0].what
    with pytest.raises(FileNotFoundError, match="--source"):
        Tree(tmp_path / "nowhere")


def test_case_and_suffixes_do_not_matter(tmp_path):
    touch(tmp_path, "Real_captured/Train/Low/low00001.PNG", "Real_captured/Train/Normal/normal00001.jpg")
    assert len(find(Tree(tmp_path), split_of("lol_v2_real", "train"), subset=True).pairs) == 1
    assert without_suffix("part1/0005_0.8_0.04") == "part1/0005_0.8_0.04" and without_suffix("a.b/c.JPG") == "a.b/c"
    assert shown("{top:a|b}/{id:[^/_]+}_{k}") == "(a|b)/{id}_{k}"


def test_folders_may_be_links_even_in_circles(tmp_path):
    touch(tmp_path, "disk/blurred/1.png", "disk/sharp/1.png")
    (tmp_path / "GoPro/train").mkdir(parents=True)
    (tmp_path / "GoPro/train/blur").symlink_to(tmp_path / "disk/blurred")
    (tmp_path / "GoPro/train/sharp").symlink_to(tmp_path / "disk/sharp")
    (tmp_path / "GoPro/again").symlink_to(tmp_path / "GoPro")
    assert len(find(Tree(tmp_path / "GoPro"), split_of("gopro", "train"), subset=True).pairs) == 1


def test_fingerprints_follow_the_file(tmp_path):
    write_image(tmp_path / "lq" / "1.png", 1)
    write_image(tmp_path / "gt" / "1.png", 2)
    split = Split("train", 0, (Rule("lq/{name}", "gt/{name}"),))
    before = find(Tree(tmp_path), split).pairs[0].fingerprint()
    write_image(tmp_path / "gt" / "1.png", 2, (9, 9))
    assert find(Tree(tmp_path), split).pairs[0].fingerprint() != before


def test_names_of_a_list_may_hold_spaces(tmp_path):
    (tmp_path / "list.txt").write_text("my photo 1.png\n./lq/a b.PNG gt/c d.jpg # a pair\n0001 0002\n\n")
    assert read_list(tmp_path / "list.txt") == ["my photo 1", "lq/a b", "gt/c d", "0001", "0002"]
