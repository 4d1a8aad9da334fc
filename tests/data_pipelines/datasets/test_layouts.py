"""Every published layout finds the pairs of a tree that looks like it, and the names users type find layouts."""

import numpy as np
import pytest
import scipy.io

from data_pipelines.datasets.layouts import LAYOUTS, layout_named
from data_pipelines.datasets.pairing import find
from data_pipelines.datasets.tree import Tree
from data_pipelines.tasks import TASKS
from tests.support.dataset_trees import write_pair

RULES = [
    pytest.param(layout, split, rule, id=f"{layout.name}-{split.name}-{k}")
    for layout in LAYOUTS
    for split in layout.splits
    for k, rule in enumerate(split.rules)
]


@pytest.mark.parametrize(("layout", "split", "rule"), RULES)
def test_a_tree_of_that_layout_is_paired(layout, split, rule, tmp_path):
    if rule.blocks:
        for name in filter(None, (rule.lq, rule.gt)):
            scipy.io.savemat(tmp_path / name, {"blocks": np.zeros((2, 3, 4, 4, 3), np.uint8)})
    else:
        lq, gt = write_pair(tmp_path, rule)
    if split.listed:
        (tmp_path / split.listed).write_text(f"{gt} {lq}\n")
    found = find(Tree(tmp_path), split, subset=True)
    assert not found.faults
    if rule.blocks:
        assert len(found.pairs) == 6
        return
    (pair,) = found.pairs
    assert (pair.lq and pair.lq.path.relative_to(tmp_path).as_posix()) == (lq or None)
    assert (pair.gt and pair.gt.path.relative_to(tmp_path).as_posix()) == (gt or None)
    # No other split of the set takes the image for its own.
    for other in layout.splits:
        if other is not split and not other.listed:
            assert not find(Tree(tmp_path), other, subset=True).pairs


def test_what_the_specification_counts():
    count = {(layout.name, split.name): split.count for layout in LAYOUTS for split in layout.splits}
    assert count["reside_ots", "train"] == 72135 == 2061 * 35
    assert count["cdd11", "train"] == 1183 * 11 and count["cdd11", "test"] == 200 * 11
    assert count["rain1400", "train"] == 900 * 14
    assert count["gopro", "train"], count["gopro", "test"] == (2103, 1111)
    wanted = "reside_its reside_ots sots_indoor sots_outdoor snow100k rain1400 rain100l rain100h rain200l rain200h"
    wanted += " outdoor_rain raindrop gopro realblur_j realblur_r dpdd sidd lol_v1 lol_v2_real lol_v2_synthetic bsd400"
    wanted += " cbsd68 wed urban100 kodak24 div2k flickr2k cdd11 toled poled uieb pairs clean"
    assert {layout.name for layout in LAYOUTS} == set(wanted.split())


def test_names_and_tasks():
    assert layout_named("LOL-v1") is layout_named("lol") is layout_named("lol_v1")
    assert layout_named("DDN").name == "rain1400"
    with pytest.raises(ValueError, match=r"no data set is known as 'imagenet'; there are reside_its, .*prepare list"):
        layout_named("imagenet")
    others = {"clean", "composite", "underdisplay", "underwater", ""}
    assert {layout.task for layout in LAYOUTS} <= {task.name for task in TASKS} | others
    names = [name for layout in LAYOUTS for name in (layout.name, *layout.aliases)]
    assert len(names) == len(set(names))
